"""Bonnaire et al., Wortsman et al., less fine-tuning: an earlier checkpoint, or weights part of the way to the base.

Protection of the weights themselves, so it also holds in samplers that know no rule. Early stopping: Bonnaire et al.,
arXiv 2505.17638 (memorization sets in later than generalization). Interpolation: Wortsman et al., "Robust fine-tuning
of zero-shot models", CVPR 2022, arXiv 2109.01903, eq. 1: theta = (1 - s) base + s fine-tuned; with a LoRA that is the
adapter's strength s. Strength 0 is the base model itself: the floor of every column.

Cost: that of plain CFG. No code was copied from any paper; none released one for this use.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from peft.helpers import rescale_adapter_scale
from torch import Tensor

from ..pipelines.interpolation import Blend
from ..pipelines.loading import load_pipeline
from .base import Mitigation, needs_base
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed


def strength_of(testbed: Testbed, strength: float) -> AbstractContextManager[Any]:
    """Inside, the UNet is fine-tuned by so much and the rest is base; outside, bit for bit what it was."""
    if getattr(testbed.pipe.unet, "peft_config", None):
        return rescale_adapter_scale(testbed.pipe.unet, strength)
    return Blend(testbed.pipe, testbed.base, parts=("unet",)).at(strength)


def _interpolate(testbed: Testbed, batch: Batch, strength: float) -> Tensor:
    with strength_of(testbed, strength):
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
