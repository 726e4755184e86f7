"""Wang et al., guidance that varies over the trajectory by a fixed shape: linear, inverse linear, cosine, sine, V, A.

Source: Wang et al., arXiv 2404.13040, section 4; baselines in arXiv 2411.16738. The shapes and their normalisation are
those of `guidance.schedules`: all spend the same guidance in total. Jain's released script multiplies 7.5 by a shape
without that normalisation, so its linear and inverse linear ones spend half as much.

The curve runs over the shapes, ordered by how late their guidance comes; the intensity is its place in that order.
Cost: plain CFG.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.schedules import Schedule
from .base import Mitigation
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed

ORDER = ("inverse_linear", "sine", "v", "a", "linear", "cosine")


def _draw(testbed: Testbed, batch: Batch, index: float) -> Tensor:
    return sample_pipeline(testbed, batch, Schedule(ORDER[int(index)]))


def _note(testbed: Testbed, index: float) -> str:
    return ORDER[int(index)].replace("_", " ")


SCHEDULES = Mitigation(
    name="schedules",
    source="Wang et al., arXiv 2404.13040, section 4",
    intensity="shape, from early to late guidance",
    intensities=tuple(float(i) for i in range(len(ORDER))),
    default=4.0,
    sampler=_draw,
    note=_note,
)
