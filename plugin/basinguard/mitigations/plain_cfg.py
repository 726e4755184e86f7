"""No mitigation, and the oldest one: less guidance.

Source: Ho and Salimans, arXiv 2207.12598, eq. 6. Lower scales (3 and 5 instead of 7.5) are the baseline that
arXiv 2411.16738 and its followers name. Cost: that of ordinary CFG.
"""

from __future__ import annotations

from torch import Tensor

from ..guidance.core import Constant
from .base import Batch, Bench, Method
from .stock_pipeline import run


def _none(bench: Bench, batch: Batch, strength: float) -> Tensor:
    return run(bench, batch)


def _lower(bench: Bench, batch: Batch, share: float) -> Tensor:
    return run(bench, batch, Constant(share * bench.scale))


NONE = Method(
    name="none",
    source="Ho and Salimans, arXiv 2207.12598",
    strength="ordinary CFG",
    strengths=(1.0,),
    default=1.0,
    draw=_none,
)
LOWER = Method(
    name="lower-cfg",
    source="arXiv 2207.12598, eq. 6; scales 5 and 3 of 7.5",
    strength="share of the usual scale",
    strengths=(0.8, 0.667, 0.533, 0.4, 0.2),
    default=0.4,
    draw=_lower,
)
