"""What a fine-tune trains: every weight of the denoiser, or adapters; the text encoders too if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Literal

import torch

from ..core.seeds import stream
from ..pipelines.families.family import Family
from ..pipelines.lora import TEXT_TARGETS, add_lora
from .finetune_options import LoraOptions

Method = Literal["lora", "full"]


def trained_layers(
    family: Family, parts: Mapping[str, Any], lora: LoraOptions, *, train_text_encoder: bool
) -> dict[str, Sequence[str]]:
    """The parts that are trained, each with its layers that get an adapter.

    Args:
        family: of the pipeline.
        parts: its networks by component name.
        lora: its `targets` are of the denoiser.
        train_text_encoder: every text encoder that a fine-tune may change is trained too.
    """
    denoiser, *encoders = family.tuned_parts(SimpleNamespace(**parts))
    text = dict.fromkeys(encoders, TEXT_TARGETS) if train_text_encoder else {}
    return {denoiser: lora.targets or family.lora_targets, **text}


def unfreeze(
    parts: Mapping[str, Any], layers: Mapping[str, Sequence[str]], method: Method, lora: LoraOptions, *, seed: int
) -> list[Any]:
    """Freezes every part, then opens what is to be trained.

    Args:
        parts: networks by component name, changed in place.
        layers: of `trained_layers`.
        method: "lora" adds adapters to the layers, "full" opens every weight of their parts.
        lora: of the adapters.
        seed: of the adapters' start.

    Returns:
        The parts that are trained.
    """
    for part in parts.values():
        part.requires_grad_(False)
    for name, targets in layers.items():
        if method == "full":
            parts[name].requires_grad_(True)
            continue
        with seeded(parts[name].device, seed):
            alpha = lora.rank if lora.alpha is None else lora.alpha
            add_lora(parts[name], rank=lora.rank, alpha=alpha, dropout=lora.dropout, targets=targets)
    return [parts[name] for name in layers]


def checkpoint_activations(module: Any) -> None:
    """Turns gradient checkpointing on, in a diffusers or a transformers model."""
    names = ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(module, name) for name in names if hasattr(module, name))()  # the last one of older transformers


@contextmanager
def seeded(device: torch.device, seed: int, *counts: int) -> Iterator[None]:
    """Inside, torch draws from (seed, counts); outside, its generators are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, *counts))
        yield
