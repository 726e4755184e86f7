"""How much of a fine-tune *ordinary CFG* can take, with the same kind of promise as the rule's.

For people who sample without the rule. Strengths are tested from the smallest (nearly the base model) to the largest,
with ordinary CFG, and the first that cannot be proven ends the sequence.

Source: Learn-then-Test with fixed sequence testing, arXiv 2110.01052, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.record import Strength
from ..diffusion.model import Model
from ..guard.guard import Guard
from .record_builder import ordinary, promise, trial_of
from .rule_search import require_terms

At = Callable[[float], AbstractContextManager[Model]]  # the model at a strength, for as long as the context is open


@dataclass(frozen=True)
class StrengthTried:
    """Ordinary CFG at one strength: what `calibrate.Candidate` is for transitions."""

    value: float
    risk: Estimate
    p_value: float
    alignment: Estimate | None
    kept: bool


@torch.no_grad()
def strengths(
    guard: Guard, at: At, *, alpha: float, delta: float, pairs: int, tried: Sequence[float]
) -> Iterator[StrengthTried]:
    """Tests ordinary CFG from the smallest strength to the largest and stops after the first that cannot be proven.

    The sequence spends `delta` by itself: it is a promise besides that of the rule, each wrong with that chance.

    Args:
        guard: knows the training images, and the scale of ordinary CFG.
        at: gives the model at a strength.
        alpha: risk that may not be exceeded, in (0, 1).
        delta: chance that the promise is broken, in (0, 1).
        pairs: (caption, seed) pairs; the same ones as for the rule.
        tried: strengths in [0, 1]; 0 is the base model, 1 the fine-tune.

    Raises:
        ValueError: a number out of range.
    """
    require_terms(alpha, delta)
    if not tried or min(tried) < 0 or max(tried) > 1:
        raise ValueError(f"strengths {list(tried)}: expected numbers in [0, 1]; 0 is the base model, 1 the fine-tune")
    for value in sorted(set(tried)):
        with at(value) as model:
            trial = trial_of(guard, model, pairs, seed_table.CALIBRATION)
            found = ordinary(trial)
        p_value = stats.binomial_p_value(int(found.hits.sum()), len(found.hits), alpha)
        risk = stats.rate(found.hits, trial.pairs.prompt)
        yield StrengthTried(value, risk, p_value, found.alignment, kept=p_value <= delta)
        if p_value > delta:
            return


def safe_strength(
    tried: Sequence[StrengthTried], *, kind: Literal["lora", "interpolation"], alpha: float, delta: float
) -> Strength:
    """The largest strength that was proven, as a record carries it; without any, the smallest tried, unpromised."""
    kept = [point for point in tried if point.kept]
    chosen = kept[-1] if kept else tried[0]
    said = f"with ordinary CFG at strength {chosen.value:g}, {promise(alpha, delta)}" if kept else ""
    return Strength(kind=kind, value=chosen.value, risk=chosen.risk, alignment=chosen.alignment, promise=said)
