"""Low-rank adapters on live modules, by peft: added in place, merged only into a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import nn

from ..exports.merge import folded

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

M = TypeVar("M", bound=nn.Module)


def add_lora(module: Any, *, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Adds one trainable adapter, in float32, to a frozen diffusers or transformers model.

    Raises:
        ValueError: a target names no layer of the module.

    Source: Hu et al., arXiv 2106.09685, eq. 3.
    """
    names = [name for name, _ in module.named_modules()]
    unknown = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names)]
    if unknown:
        raise ValueError(
            f"LoRA targets {unknown} name no layer of {type(module).__name__}; usual ones: "
            f"{list(UNET_TARGETS)} for the UNet, {list(TEXT_TARGETS)} for the text encoder"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a share of the rank, whole or not
        lora_dropout=dropout,
        target_modules=list(targets),
        init_lora_weights="gaussian",
    )
    module.add_adapter(config)
    cast_training_params(module, torch.float32)


def down_projections(module: Any) -> list[Any]:
    """The first layer of every adapter: its output are the adapter's channels."""
    layers = (getattr(layer, "lora_A", None) for layer in module.modules())
    return [projection for each in layers if each is not None for projection in each.values()]


def merged_module(module: M) -> M:
    """A frozen copy in evaluation mode with its adapters added to the weights; the module itself is untouched."""
    return folded(module).eval().requires_grad_(False)
