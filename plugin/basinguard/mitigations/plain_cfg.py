"""Ho and Salimans: plain CFG, which is no mitigation, and the oldest one: less guidance.

Source: Ho and Salimans, arXiv 2207.12598, eq. 6. Lower scales (3 and 5 instead of 7.5) are the baseline that
arXiv 2411.16738 and its followers name. Cost: that of plain CFG.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.core import Constant
from .base import Mitigation
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed


def _plain(testbed: Testbed, batch: Batch, intensity: float) -> Tensor:
    return sample_pipeline(testbed, batch)


def _lower(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    return sample_pipeline(testbed, batch, Constant(share * testbed.scale))


PLAIN = Mitigation(
    name="plain",
    source="Ho and Salimans, arXiv 2207.12598",
    intensity="plain CFG",
    intensities=(1.0,),
    default=1.0,
    sampler=_plain,
)
LOWER = Mitigation(
    name="lower-cfg",
    source="arXiv 2207.12598, eq. 6; scales 5 and 3 of 7.5",
    intensity="share of the usual scale",
    intensities=(0.8, 0.667, 0.533, 0.4, 0.2),
    default=0.4,
    sampler=_lower,
)
