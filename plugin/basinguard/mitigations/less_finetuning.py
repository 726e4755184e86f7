"""Bonnaire et al., Wortsman et al., less fine-tuning: an earlier checkpoint, or weights part of the way to the base.

Protection of the weights themselves, so it also holds in samplers that know no rule. Early stopping: Bonnaire et al.,
arXiv 2505.17638 (memorization sets in later than generalization). Interpolation: Wortsman et al., "Robust fine-tuning
of zero-shot models", CVPR 2022, arXiv 2109.01903, eq. 1: theta = (1 - s) base + s fine-tuned; with a LoRA that is the
adapter's strength s. Strength 0 is the base model itself: the floor of every column.

Cost: that of plain CFG. No code was copied from any paper; none released one for this use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ..pipelines.loading import load_pipeline
from .base import Mitigation, needs_base
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed


@contextmanager
def strength_of(testbed: Testbed, share: float) -> Iterator[None]:
    """Inside, the UNet is `share` fine-tuned and the rest base; outside, bit for bit what it was."""
    unet = testbed.pipe.unet
    adapters = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]
    if adapters:
        with _adapters_at(adapters, share):
            yield
        return
    assert testbed.base is not None
    tuned = {name: value.clone() for name, value in unet.state_dict().items()}
    base = testbed.base.unet.state_dict()
    try:
        unet.load_state_dict({name: torch.lerp(base[name].to(value), value, share) for name, value in tuned.items()})
        yield
    finally:
        unet.load_state_dict(tuned)


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


def _interpolate(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    with strength_of(testbed, share):
        return sample_pipeline(testbed, batch)


def _earlier(testbed: Testbed, batch: Batch, index: float) -> Tensor:
    return sample_pipeline(testbed, batch, pipe=_checkpoint(testbed, index))


def _checkpoint(testbed: Testbed, index: float) -> Any:
    path = testbed.checkpoints[min(int(index), len(testbed.checkpoints) - 1)]
    if testbed.cache.get("checkpoint", (None,))[0] != path:
        pipe = load_pipeline(path)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.requires_grad_(False)
        testbed.cache["checkpoint"] = (path, pipe)
    return testbed.cache["checkpoint"][1]


def _which(testbed: Testbed, index: float) -> str:
    return testbed.checkpoints[int(index)].name if int(index) < len(testbed.checkpoints) else "no such checkpoint"


def _needs_checkpoints(testbed: Testbed) -> str:
    return "" if testbed.checkpoints else "needs earlier checkpoints of the run: give their directories as checkpoints"


INTERPOLATE = Mitigation(
    "interpolate",
    "Wortsman et al., CVPR 2022, arXiv 2109.01903, eq. 1; LoRA strength",
    "strength: share of the fine-tune",
    (0.9, 0.75, 0.5, 0.25, 0.0),
    0.5,
    _interpolate,
    needs_base,
)
EARLIER = Mitigation(
    "early-stopped",
    "Bonnaire et al., arXiv 2505.17638",
    "checkpoint, most trained first",
    (0.0, 1.0, 2.0, 3.0, 4.0),
    0.0,
    _earlier,
    _needs_checkpoints,
    _which,
    extra_unets=lambda testbed, index: [_checkpoint(testbed, index).unet],
)
