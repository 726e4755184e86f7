"""This package's own edits of a fine-tune's update: a part of it alone, or less of it at high noise; by plain CFG.

- `ours-filter`: what a filter leaves of the change of the UNet (`core.update_filter`), at every timestep: weights of
  their own, which any loader has. A filter that leaves all of this fine-tune samples as plain CFG, one that leaves
  nothing as the base model; the note of a row says how much is left.
- `ours-schedule`: a share of the fine-tune above a timestep and all of it at and below (`guidance.strength`), which an
  unmerged LoRA does at no cost, and no merged file can.

Neither has a promise here; `calibrate` proves one where they are asked for as `update_filters` or `strength_schedules`.
Cost: that of plain CFG.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor

from ..exports.merge import merged, without_adapters
from ..guidance.strength import StrengthSchedule, scheduled
from ..pipelines.interpolation import Blend
from .base import Mitigation, needs_base
from .checkpoints import UNET
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed

FILTERS = ("no-cross-attention", "rank-32", "rank-16", "residual-blocks", "rank-4")
TRANSITION = 700.0  # of the share: what its intensity does not vary


def blend_of(testbed: Testbed) -> Blend:
    """The fine-tune under test between its base and all of it, made once; an unmerged LoRA in a pipeline of its own."""
    return testbed.cached("update", lambda: _blend(testbed))


def _blend(testbed: Testbed) -> Blend:
    if not _unmerged(testbed):
        return Blend(testbed.pipe, testbed.base, parts=UNET)
    whole = merged(testbed.pipe)
    whole.set_progress_bar_config(disable=True)
    return Blend(whole, without_adapters(testbed.pipe), parts=UNET)


def _unmerged(testbed: Testbed) -> bool:
    return bool(getattr(testbed.pipe.unet, "peft_config", None))


def _filtered(testbed: Testbed, batch: Batch, index: float) -> Tensor:
    blend = blend_of(testbed)
    with blend.at(1.0, FILTERS[int(index)]):
        return sample_pipeline(testbed, batch, pipe=blend.tuned)


def _left(testbed: Testbed, index: float) -> str:
    name = FILTERS[int(index)]
    return f"{name}, which leaves {blend_of(testbed).left(name):.2f} of the change, by norm"


def _scheduled(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    with _strengths(testbed, StrengthSchedule((TRANSITION,), (share, 1.0))):
        return sample_pipeline(testbed, batch)


def _strengths(testbed: Testbed, schedule: StrengthSchedule) -> AbstractContextManager[None]:
    if _unmerged(testbed):
        return scheduled(testbed.pipe.unet, schedule)
    return blend_of(testbed).switching(schedule)


HERE = "basinguard"
FILTERED = Mitigation(
    "ours-filter",
    f"{HERE}, a part of the update",
    f"filter of the update, of {', '.join(FILTERS)}",
    tuple(float(index) for index in range(len(FILTERS))),
    0.0,
    _filtered,
    needs_base,
    _left,
    extra_unets=lambda testbed, index: [blend_of(testbed).tuned.unet] if _unmerged(testbed) else [],
    ours=True,
)
SCHEDULED = Mitigation(
    "ours-schedule",
    f"{HERE}, less of the update above timestep {TRANSITION:g}",
    f"share of the fine-tune above timestep {TRANSITION:g}",
    (0.8, 0.6, 0.4, 0.2, 0.0),
    0.6,
    _scheduled,
    needs_base,
    ours=True,
)
