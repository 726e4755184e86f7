"""Kynkaanniemi et al., guidance in an interval of noise levels only.

Source: Kynkaanniemi et al., arXiv 2404.07724, eq. 5: plain CFG for noise levels in (low, high], the conditional
prediction (scale 1) outside. Its SDXL setting is (0.28, 5.42]. Written to keep quality, not against memorization; it
takes part because its upper end is a transition with scale 1 before it.

The intensity is the share of timesteps above which guidance is off; the lower end is the timestep of sigma 0.28
throughout. Cost: one evaluation instead of two outside the interval. No code was released with the paper.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.schedules import Interval
from .base import Mitigation
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed

LOW = 0.28  # noise level


def _draw(testbed: Testbed, batch: Batch, high: float) -> Tensor:
    low = min(testbed.model.schedule.timestep(LOW), high - 1)
    return sample_pipeline(testbed, batch, Interval(low, high))


INTERVAL = Mitigation(
    name="interval-cfg",
    source="Kynkaanniemi et al., arXiv 2404.07724, eq. 5",
    intensity="upper end, timestep",
    intensities=(950.0, 850.0, 750.0, 650.0, 500.0),
    default=850.0,
    sampler=_draw,
)
