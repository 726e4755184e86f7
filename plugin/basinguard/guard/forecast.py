"""In how many epochs plain CFG's risk will exceed the allowed one, from what has risen so far.

The time of the breach t* is told by how far the early warners have come: log(t* / t) is linear in the logarithms of the
gap's and the critical scale's excess over the control group, and in the basin width, all at time t in updates. The
coefficients were learnt on fine-tunes of TinyWorld (`recipes/studies/acting_study.py`), and so was the interval, from
the errors on runs that were left out; another model's may lie elsewhere, and the forecast says so.

It was learnt on runs that did exceed the allowed risk, so it never says "never": where nothing has risen it answers
about four times as long as so far, again and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.estimate import Estimate
from ..core.report import Report, measured
from ..core.schema import Schema
from ..core.text import epoch_name
from .verdict import verdict_on

FURTHEST = 10.0  # 22,000 times longer than so far: nothing beyond is worth a number
FLOOR = {"gap_excess": 3e-4, "sigma_c_excess": 0.03}  # what lies below cannot be told from 0: noise of the measure


@dataclass(frozen=True)
class Coefficients:
    """log(t* / t) = constant + gap * log(gap excess) + scale * log(critical scale's excess) + width * width.

    Attributes:
        low, high: what is added for the ends of the interval.
        level: wanted coverage of the interval.
        n: runs they were learnt on.
    """

    constant: float
    gap: float
    scale: float
    width: float
    low: float
    high: float
    level: float
    n: int


# from recipes/results/acting_study.json
TINYWORLD = Coefficients(-2.3573, -0.4765, 0.0534, -21.1140, low=-0.8585, high=1.1005, level=0.8, n=5)
WITHOUT_SCALE = Coefficients(-2.3758, -0.4664, 0.0, -15.2480, low=-0.7059, high=1.1061, level=0.8, n=5)


class Forecast(Schema):
    """When plain CFG's risk exceeds the allowed one.

    Attributes:
        state: "ahead" with `epochs`; "passed" where it does already; "unknown".
        epochs: from the newest probe on, with an interval; None unless "ahead".
        why: what it rests on, or what is missing.
    """

    state: Literal["ahead", "passed", "unknown"]
    epochs: Estimate | None = None
    why: str

    def __str__(self) -> str:
        if self.epochs is None:
            return f"{self.state}: {self.why}"
        return f"breach in {self.epochs.interval(0)} epochs, {self.epochs.level:.0%} interval ({self.why})"


def forecast(history: Sequence[Report], alpha: float) -> Forecast:
    """The forecast from the newest report; pure, without a model, in well under a millisecond.

    Args:
        history: reports in their order, gaps included; the base model's is epoch -1.
        alpha: risk that is allowed, in (0, 1).
    """
    verdict = verdict_on(history, alpha)
    if verdict.level < 0:
        return Forecast(state="unknown", why=verdict.evidence[0])
    last = measured(history)[-1]
    if verdict.level >= 2:
        return Forecast(state="passed", why=f"plain CFG is above {alpha:g} at {epoch_name(last.epoch)}")
    if last.epoch < 0 or last.train_step <= 0:
        return Forecast(state="unknown", why="only the base model has been measured")
    if last.gaps.excess is None:
        return Forecast(state="unknown", why="the gap has no control group: give held-out prompts")
    coefficients = TINYWORLD if last.critical_scales.excess is not None else WITHOUT_SCALE
    left = log_time_left(last, coefficients)
    per_epoch = last.train_step / (last.epoch + 1)
    shifts = (0.0, coefficients.low, coefficients.high)
    value, low, high = (max(0.0, last.train_step * math.expm1(left + shift) / per_epoch) for shift in shifts)
    runs = f"interval from {coefficients.n} runs of TinyWorld left out in turn"
    method = f"log-linear in gap, critical scale and width; {runs}"
    epochs = Estimate(value=value, low=low, high=high, level=coefficients.level, n=coefficients.n, method=method)
    return Forecast(state="ahead", epochs=epochs, why=f"learnt on TinyWorld, from {_seen(last)}")


def log_time_left(report: Report, coefficients: Coefficients) -> float:
    """log(t* / t): how many times longer than so far, in updates, until the allowed risk is exceeded."""
    gap, scale, width = forecast_features(report)
    left = coefficients.constant + coefficients.gap * gap + coefficients.scale * scale + coefficients.width * width
    return min(max(left, -FURTHEST), FURTHEST)


def forecast_features(report: Report) -> tuple[float, float, float]:
    """log of the gap's excess, log of the critical scale's, each not below its noise, and the basin width."""
    estimates, width = report.estimates, report.basin.width
    gap, scale = (math.log(max(floor, getattr(estimates.get(name), "value", 0.0))) for name, floor in FLOOR.items())
    return gap, scale, width.value if width else 0.0


def _seen(report: Report) -> str:
    names = {"gap_excess": "gap excess", "sigma_c_excess": "log critical scale excess", "width": "width"}
    values = report.estimates
    return ", ".join(f"{words} {values[name].value:.2g}" for name, words in names.items() if name in values)
