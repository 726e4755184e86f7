"""What a fine-tune trains: every weight of the UNet, or adapters; the text encoder too if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from ..core.seeds import stream
from ..pipelines.lora import TEXT_TARGETS, UNET_TARGETS, add_lora
from .finetune_options import LoraOptions

Method = Literal["lora", "full"]


def unfreeze(
    parts: Mapping[str, Any], method: Method, lora: LoraOptions, *, train_text_encoder: bool, seed: int
) -> list[Any]:
    """Freezes every part, then opens what is to be trained.

    Args:
        parts: "unet", "vae" and "text_encoder", changed in place.
        method: "lora" adds adapters, "full" opens every weight of the UNet.
        lora: of the adapters.
        train_text_encoder: train the text encoder too.
        seed: of the adapters' start.

    Returns:
        The parts that are trained.
    """
    for part in parts.values():
        part.requires_grad_(False)
    targets = {"unet": lora.targets or UNET_TARGETS} | ({"text_encoder": TEXT_TARGETS} if train_text_encoder else {})
    for name, layers in targets.items():
        if method == "full":
            parts[name].requires_grad_(True)
            continue
        with seeded(parts[name].device, seed):
            alpha = lora.rank if lora.alpha is None else lora.alpha
            add_lora(parts[name], rank=lora.rank, alpha=alpha, dropout=lora.dropout, targets=layers)
    return [parts[name] for name in targets]


def checkpoint_activations(module: Any) -> None:
    """Turns gradient checkpointing on, in a diffusers or a transformers model."""
    enable = getattr(module, "enable_gradient_checkpointing", None) or module.gradient_checkpointing_enable
    enable()


@contextmanager
def seeded(device: torch.device, seed: int, *counts: int) -> Iterator[None]:
    """Inside, torch draws from (seed, counts); outside, its generators are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, *counts))
        yield
