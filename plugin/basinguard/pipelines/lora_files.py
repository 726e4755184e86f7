"""A LoRA file on top of a base model, from kohya's trainers or diffusers', at the strength that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.safetensors_header import read_header
from ..exports.lora_formats import ADAPTER_METADATA, with_one_alpha
from .architecture import context_width, name_of

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
OTHER_KINDS = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "dora_scale": "DoRA"}


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
        pipe.load_lora_weights(even_alphas(state), adapter_name="default")
    elif ADAPTER_METADATA in metadata:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="default", local_files_only=True)
    else:
        pipe.load_lora_weights(state, adapter_name="default")
    if strength != 1.0:
        pipe.set_adapters("default", strength)
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)


def even_alphas(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same LoRA with one alpha for all layers, see `with_one_alpha`.

    Args:
        state: kohya's names, `lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha` (its rank if missing).
    """
    names = [name.removesuffix(DOWN) for name in state if name.endswith(DOWN)]
    rank_or_alpha = {name: float(state.get(f"{name}{ALPHA}", len(state[f"{name}{DOWN}"]))) for name in names}
    layers = with_one_alpha({n: (state[f"{n}{DOWN}"], state[f"{n}{UP}"], rank_or_alpha[n]) for n in names})
    even = {f"{name}{UP}": up for name, (_, up, _) in layers.items()}
    alphas = {f"{name}{ALPHA}": torch.tensor(alpha) for name, (_, _, alpha) in layers.items()}
    return {**state, **even, **alphas}
