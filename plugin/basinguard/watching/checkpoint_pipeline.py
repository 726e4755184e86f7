"""A checkpoint as a pipeline: a LoRA on its base, a UNet in its base's place, or a whole model."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..core.files import whole_file
from ..exports.lora_names import sort_names
from ..pipelines.families.registry import tuned_parts
from ..pipelines.loading import load_pipeline
from ..pipelines.original_weights import load_original
from .checkpoints import Checkpoint
from .unet_files import unet_files


def lora_fingerprint(checkpoint: Checkpoint) -> str:
    """Tells LoRA weights by what they are, whatever the file is called and its tensors are; "" of other kinds."""
    if not checkpoint.kind.startswith("lora"):
        return ""
    tensors = _lora_tensors(checkpoint.path).values()
    each = sorted(sha256(tensor.float().numpy().tobytes()).hexdigest() for tensor in tensors)
    return sha256("".join(each).encode()).hexdigest()


def _lora_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The factors of every layer, by name, without what else is in the file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sort_names(file.keys()).names}


def _opened_lora(checkpoint: Checkpoint, base: str) -> Any:
    if checkpoint.kind == "lora":
        return load_pipeline(base, lora=checkpoint.path)
    with TemporaryDirectory() as folder:
        alone = Path(folder) / f"{checkpoint.path.parent.name}.safetensors"
        write_lora_alone(checkpoint.path, alone)
        return load_pipeline(base, lora=alone)


def write_lora_alone(path: Path, target: Path) -> None:
    """Writes the LoRA of a UNet's state, where both were saved as one, to a file of its own."""
    with whole_file(target, overwrite=True) as partial:
        save_file(_lora_tensors(path), partial)


def opened(checkpoint: Checkpoint, base: str) -> Any:
    """A pipeline with the checkpoint's weights.

    Raises:
        OSError: it is not there any more.
        ValueError: of another base, damaged, or of a kind that is not read.
    """
    if checkpoint.kind.startswith("lora"):
        return _opened_lora(checkpoint, base)
    if checkpoint.kind == "model":
        return load_pipeline(checkpoint.path)
    pipe, path = load_pipeline(base), checkpoint.path
    if checkpoint.kind == "single-file":
        load_original(pipe, path)
        return pipe
    weights = {
        name: w for file in ([path] if path.is_file() else unet_files(path)) for name, w in load_file(file).items()
    }
    if {n: w.shape for n, w in weights.items()} != {n: w.shape for n, w in pipe.unet.state_dict().items()}:
        raise ValueError(f"{path}: its UNet has other layers than that of {base}; give its own base")
    pipe.unet.load_state_dict(weights)
    for name in tuned_parts(pipe)[1:]:
        if (path / name).is_dir():  # trained with it
            kind = type(getattr(pipe, name))
            text = kind.from_pretrained(path / name, local_files_only=True, use_safetensors=True).float()
            setattr(pipe, name, text)
    return pipe
