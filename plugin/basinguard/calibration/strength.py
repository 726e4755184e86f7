"""How much of a fine-tune *plain CFG* can take, with the same kind of promise as the rule's.

For people who sample without the rule. Strengths are tested in a `fixed_sequence` from the smallest (nearly the base
model) to the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch

from ..core import seeds as seed_table
from ..core.record import Strength
from ..diffusion.model import Model
from ..guard.guard import Guard
from .candidate import StrengthCandidate
from .fixed_sequence import fixed_sequence
from .promise import promise, require_terms
from .terms import CalibrationTerms
from .trial import trial_of

At = Callable[[float], AbstractContextManager[Model]]  # the model at a strength, for as long as the context is open


@torch.no_grad()
def strengths(guard: Guard, at: At, terms: CalibrationTerms) -> Iterator[StrengthCandidate]:
    """Tests plain CFG from the smallest strength to the largest and stops after the first that cannot be proven.

    The sequence spends all of `terms.delta`: it is a promise besides that of the rule, each wrong with that chance.

    Args:
        guard: knows the training images, and the scale of plain CFG.
        at: gives the model at a strength.
        terms: alpha, delta, pairs (the same ones as for the rule) and the strengths in [0, 1] to test; 0 is the base
            model, 1 the fine-tune.

    Raises:
        ValueError: a number out of range.
    """
    require_terms(terms.alpha, terms.delta)
    tried = sorted(set(terms.strengths))
    if not tried or tried[0] < 0 or tried[-1] > 1:
        raise ValueError(
            f"strengths {list(terms.strengths)}: expected numbers in [0, 1]; 0 is the base model, 1 the fine-tune"
        )
    yield from fixed_sequence((_measured(guard, at, terms, strength) for strength in tried), terms.delta)


def _measured(guard: Guard, at: At, terms: CalibrationTerms, strength: float) -> StrengthCandidate:
    with at(strength) as model:
        trial = trial_of(guard, model, terms.pairs, seed_table.CALIBRATION)
        return trial.measure(StrengthCandidate, trial.sample_plain(), terms.alpha, strength=strength)


def safe_strength(
    tried: Sequence[StrengthCandidate], kind: Literal["lora", "interpolation"], terms: CalibrationTerms
) -> Strength:
    """The largest strength that was proven, as a record carries it; without any, the smallest tried, unpromised."""
    proven = [candidate for candidate in tried if candidate.proven]
    chosen = proven[-1] if proven else tried[0]
    words = f"with plain CFG at strength {chosen.strength:g}, {promise(terms.alpha, terms.delta)}" if proven else ""
    return Strength(kind=kind, value=chosen.strength, risk=chosen.risk, alignment=chosen.alignment, promise=words)
