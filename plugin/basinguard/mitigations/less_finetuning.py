"""Bonnaire et al., Wortsman et al., less fine-tuning: an earlier checkpoint, or weights part of the way to the base.

Protection of the weights themselves, so it also holds in samplers that know no rule. Early stopping: Bonnaire et al.,
arXiv 2505.17638 (memorization sets in later than generalization). Interpolation: Wortsman et al., "Robust fine-tuning
of zero-shot models", CVPR 2022, arXiv 2109.01903, eq. 1: theta = (1 - s) base + s fine-tuned; with a LoRA that is the
adapter's strength s. Strength 0 is the base model itself: the floor of every column.

Cost: that of plain CFG. No code was copied from any paper; none released one for this use.
"""

from __future__ import annotations

from torch import Tensor

from .base import Mitigation, needs_base
from .checkpoints import checkpoint, checkpoint_name, strength_of
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed


def _interpolate(testbed: Testbed, batch: Batch, strength: float) -> Tensor:
    with strength_of(testbed, strength):
        return sample_pipeline(testbed, batch)


def _earlier(testbed: Testbed, batch: Batch, index: float) -> Tensor:
    return sample_pipeline(testbed, batch, pipe=checkpoint(testbed, int(index)))


def _which(testbed: Testbed, index: float) -> str:
    return checkpoint_name(testbed, int(index))


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
    extra_unets=lambda testbed, index: [checkpoint(testbed, int(index)).unet],
)
