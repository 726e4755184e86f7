"""LoRA files as trainers leave them, with tensors that hold nothing."""

import torch
from safetensors.torch import save_file

UP, DOWN = torch.zeros(4, 2), torch.zeros(2, 4)
KOHYA = {"lora_unet_x.lora_up.weight": UP, "lora_unet_x.lora_down.weight": DOWN}
PEFT = {"unet.x.lora_B.weight": UP, "unet.x.lora_A.weight": DOWN}


def saved(path, tensors, metadata=None):
    """A safetensors file, its folder made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata or None)
    return path
