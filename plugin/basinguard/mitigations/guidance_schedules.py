"""Guidance that varies over the trajectory by a fixed shape: linear, inverse linear, cosine, sine, V and A.

Source: Wang et al., arXiv 2404.13040, section 4; baselines in arXiv 2411.16738. The shapes and their normalisation are
those of `basinguard.schedules`: all spend the same guidance in total. Jain's released script multiplies 7.5 by a shape
without that normalisation, so its linear and inverse linear ones spend half as much.

The curve runs over the shapes, ordered by how late their guidance comes; there is no strength. Cost: ordinary CFG.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.schedules import Schedule
from .base import Batch, Bench, Method
from .stock_pipeline import run

ORDER = ("inverse_linear", "sine", "v", "a", "linear", "cosine")


def _draw(bench: Bench, batch: Batch, index: float) -> Tensor:
    return run(bench, batch, Schedule(ORDER[int(index)]))


def _note(bench: Bench, index: float) -> str:
    return ORDER[int(index)].replace("_", " ")


SCHEDULES = Method(
    name="schedules",
    source="Wang et al., arXiv 2404.13040, section 4",
    strength="shape, from early to late guidance",
    strengths=tuple(float(i) for i in range(len(ORDER))),
    default=4.0,
    draw=_draw,
    note=_note,
)
