"""Guidance in an interval of noise levels only.

Source: Kynkaanniemi et al., arXiv 2404.07724, eq. 5: ordinary CFG for noise levels in (low, high], the conditional
prediction (scale 1) outside. Its SDXL setting is (0.28, 5.42]. Written to keep quality, not against memorization; it
takes part because its upper end is a transition with scale 1 before it.

Strength is the share of timesteps above which guidance is off; the lower end is the timestep of sigma 0.28 throughout.
Cost: one evaluation instead of two outside the interval. No code was released with the paper.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.schedules import Interval
from .base import Batch, Bench, Method
from .stock_pipeline import run

LOW = 0.28  # noise level


def _draw(bench: Bench, batch: Batch, high: float) -> Tensor:
    low = min(bench.model.schedule.timestep(LOW), high - 1)
    return run(bench, batch, Interval(low, high))


INTERVAL = Method(
    name="interval-cfg",
    source="Kynkaanniemi et al., arXiv 2404.07724, eq. 5",
    strength="upper end, timestep",
    strengths=(950.0, 850.0, 750.0, 650.0, 500.0),
    default=850.0,
    draw=_draw,
)
