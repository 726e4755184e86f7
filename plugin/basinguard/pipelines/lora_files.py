"""A LoRA file on top of a base model, from kohya's trainers or diffusers', at the strength that it was trained with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.safetensors_header import read_header
from .architecture import context_width, name_of

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
OTHER_KINDS = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "dora_scale": "DoRA"}
ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers writes rank and alpha


def require_lora(path: Path, unet_config: Mapping[str, Any]) -> None:
    """Refuses a file that is not a LoRA for this UNet, by its header alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not a LoRA, of a kind that diffusers cannot add, or for another architecture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"LoRA {str(path)!r}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(f"LoRA {str(path)!r}: expected a .safetensors file; others may run code and are never opened")
    shapes = read_header(path).shapes
    for mark, kind in OTHER_KINDS.items():
        if any(mark in name for name in shapes):
            raise ValueError(f"LoRA {str(path)!r} is a {kind}, which is not supported; merge it into its base first")
    if not any("lora" in name for name in shapes):
        raise ValueError(f"{str(path)!r} is not a LoRA; a whole model is given as the base")
    width, expected = context_width(shapes), unet_config.get("cross_attention_dim")
    if width is not None and width != expected:
        raise ValueError(
            f"LoRA {str(path)!r} is for {name_of(width)}, the base is {name_of(expected)}; give its own base"
        )


def load_lora(pipe: Any, path: Path, *, strength: float = 1.0) -> None:
    """Adds the file's adapter to the pipeline's UNet and text encoder, frozen and active.

    Args:
        pipe: a `StableDiffusionPipeline`, changed in place.
        path: a file that `require_lora` accepts.
        strength: share of it in the weights; 1 is what it was trained to be.
    """
    state, metadata = load_file(path), read_header(path).metadata
    if any(name.endswith(DOWN) for name in state):
        pipe.load_lora_weights(with_one_alpha(state), adapter_name="default")
    elif ADAPTER_METADATA in metadata:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="default", local_files_only=True)
    else:
        pipe.load_lora_weights(state, adapter_name="default")
    if strength != 1.0:
        pipe.set_adapters("default", strength)
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)


def with_one_alpha(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same LoRA with one alpha, its commonest, for all layers: where it was another, `up` takes the difference.

    diffusers 0.42 drops the alphas of a kohya file that are not the commonest one.

    Args:
        state: kohya's names, `lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha` (its rank if missing).
    """
    names = [name.removesuffix(DOWN) for name in state if name.endswith(DOWN)]
    alphas = {name: float(state.get(f"{name}{ALPHA}", state[f"{name}{DOWN}"].shape[0])) for name in names}
    usual = Counter(alphas.values()).most_common(1)[0][0]
    result = dict(state)
    for name, alpha in alphas.items():
        up = state[f"{name}{UP}"]
        result[f"{name}{UP}"] = up if alpha == usual else (up.float() * (alpha / usual)).to(up.dtype)
        result[f"{name}{ALPHA}"] = torch.tensor(usual)
    return result
