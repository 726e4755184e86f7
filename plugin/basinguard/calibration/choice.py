"""Of the products that are proven, the one to ship: most taught, then best aligned, then cheapest.

Choosing among proven candidates needs no correction: the promise covers all of them at once. Nearness to the base
model is no merit anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..core.estimate import Estimate
from ..similarity.taught import taught_difference
from .candidate import ProductCandidate

Merit = Callable[[ProductCandidate], Estimate | None]
Worse = Callable[[ProductCandidate, ProductCandidate], bool]


def best(candidates: Iterable[ProductCandidate]) -> ProductCandidate | None:
    """The proven candidate to ship; None when none is proven.

    Those whose `taught` cannot be told from the highest (the paired interval of the difference covers 0) are level;
    of them, those whose alignment cannot be told from the best; of them the cheapest: fewest evaluations, plain CFG
    before a rule, the whole fine-tune before a share of it. Where neither was measured the boldest is taken.
    """
    proven = [c for c in candidates if c.proven]
    if not proven:
        return None
    if not any(c.left or c.alignment for c in proven):
        return max(proven, key=lambda c: c.gain)
    level = _level(proven, lambda c: c.left, _taught_below)
    return min(_level(level, lambda c: c.alignment, _aligned_below), key=_price)


def _level(candidates: Sequence[ProductCandidate], merit: Merit, worse: Worse) -> Sequence[ProductCandidate]:
    """Those that cannot be told from the best; all of them where not every one was measured."""
    values = [estimate.value for c in candidates if (estimate := merit(c)) is not None]
    if len(values) < len(candidates):
        return candidates
    top = candidates[values.index(max(values))]
    return [c for c in candidates if c is top or not worse(c, top)]


def _taught_below(candidate: ProductCandidate, top: ProductCandidate) -> bool:
    assert candidate.taught is not None
    assert top.taught is not None
    return taught_difference(top.taught, candidate.taught).low > 0


def _aligned_below(candidate: ProductCandidate, top: ProductCandidate) -> bool:
    if candidate.pair_alignment is None or top.pair_alignment is None:
        return False
    return top.pair_alignment.above(candidate.pair_alignment).low > 0


def _price(candidate: ProductCandidate) -> tuple[float, bool, float, float]:
    product = candidate.product
    return round(candidate.evals_per_sample, 6), not product.guidance.plain, -product.strength, -candidate.gain
