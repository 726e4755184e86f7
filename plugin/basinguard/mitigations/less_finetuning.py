"""Less fine-tuning: an earlier checkpoint, or weights part of the way back to the base.

Protection of the weights themselves, so it also holds in samplers that know no rule. Early stopping: Bonnaire et al.,
arXiv 2505.17638 (memorization sets in later than generalization). Interpolation: Wortsman et al., "Robust fine-tuning
of zero-shot models", CVPR 2022, arXiv 2109.01903, eq. 1: theta = (1 - s) base + s fine-tuned; with a LoRA that is the
adapter's strength s. Strength 0 is the base model itself: the floor of every column.

Cost: that of ordinary CFG. No code was copied from any paper; none released one for this use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ..pipelines.loading import load_pipeline
from .base import Batch, Bench, Method, needs_base
from .stock_pipeline import run


@contextmanager
def strength_of(bench: Bench, share: float) -> Iterator[None]:
    """Inside, the UNet is `share` fine-tuned and the rest base; outside, bit for bit what it was."""
    unet = bench.pipe.unet
    adapters = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]
    if adapters:
        with _adapters_at(adapters, share):
            yield
        return
    assert bench.base is not None
    kept = {name: value.clone() for name, value in unet.state_dict().items()}
    base = bench.base.unet.state_dict()
    try:
        unet.load_state_dict({name: torch.lerp(base[name].to(value), value, share) for name, value in kept.items()})
        yield
    finally:
        unet.load_state_dict(kept)


@contextmanager
def _adapters_at(adapters: list[BaseTunerLayer], share: float) -> Iterator[None]:
    before = [dict(layer.scaling) for layer in adapters]
    try:
        for layer in adapters:
            layer.scaling.update({name: value * share for name, value in layer.scaling.items()})
        yield
    finally:
        for layer, scaling in zip(adapters, before, strict=True):
            layer.scaling.update(scaling)


def _interpolate(bench: Bench, batch: Batch, share: float) -> Tensor:
    with strength_of(bench, share):
        return run(bench, batch)


def _earlier(bench: Bench, batch: Batch, index: float) -> Tensor:
    return run(bench, batch, pipe=_checkpoint(bench, index))


def _checkpoint(bench: Bench, index: float) -> Any:
    path = bench.checkpoints[min(int(index), len(bench.checkpoints) - 1)]
    if bench.memory.get("checkpoint", (None,))[0] != path:
        pipe = load_pipeline(path)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.requires_grad_(False)
        bench.memory["checkpoint"] = (path, pipe)
    return bench.memory["checkpoint"][1]


def _which(bench: Bench, index: float) -> str:
    return bench.checkpoints[int(index)].name if int(index) < len(bench.checkpoints) else "no such checkpoint"


def _needs_checkpoints(bench: Bench) -> str:
    return "" if bench.checkpoints else "needs earlier checkpoints of the run: give their directories as checkpoints"


INTERPOLATE = Method(
    "interpolate",
    "Wortsman et al., CVPR 2022, arXiv 2109.01903, eq. 1; LoRA strength",
    "share of the fine-tune kept",
    (0.9, 0.75, 0.5, 0.25, 0.0),
    0.5,
    _interpolate,
    needs_base,
)
EARLIER = Method(
    "early-stopped",
    "Bonnaire et al., arXiv 2505.17638",
    "checkpoint, most trained first",
    (0.0, 1.0, 2.0, 3.0, 4.0),
    0.0,
    _earlier,
    _needs_checkpoints,
    _which,
    further=lambda bench, index: [_checkpoint(bench, index).unet],
)
