"""Of the products that are proven, the one to ship: most taught, then best aligned, then without a rule, then cheapest.

Or, where the user says so, the one that copied least, or the cheapest, of those whose `taught` cannot be told apart.

Choosing among proven candidates needs no correction: the promise covers all of them at once. Nearness to the base
model is no merit anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..similarity.taught import Taught, taught_difference
from .candidate import Product, ProductCandidate, by_kind
from .terms import Counts

LEVEL = 0.03  # of `taught`: less than anybody sees, so what is simpler or cheaper may ship instead
FINALISTS = 3


def finalists(candidates: Iterable[ProductCandidate], most: int = FINALISTS) -> list[ProductCandidate]:
    """The proven candidates whose `taught` cannot be told from the highest, most first: worth more samples.

    One alone where nothing is to be decided; none where nothing is proven, or it was not measured.
    """
    able = sorted((c for c in candidates if c.proven and c.left), key=lambda c: -c.gain)
    return list(_untold(able)[:most])


def best(
    candidates: Iterable[ProductCandidate],
    heldout: Mapping[Product, Taught] | None = None,
    counts: Counts = "taught",
) -> ProductCandidate | None:
    """The proven candidate to ship; None when none is proven.

    Those whose `taught` is at most `LEVEL` below the highest are level; of them, those whose alignment cannot be told
    from the best; of them plain CFG before a rule, which people would have to apply, then what takes the fewest
    evaluations, then the whole fine-tune before a share or a filtered part of it. A rule has to keep clearly more than
    plain CFG (the paired interval excludes 0). Where neither was measured the boldest is taken.

    Args:
        candidates: tested ones.
        heldout: `taught` of the finalists on held-out prompts, by which they are compared; without it all are, by that
            on training captions.
        counts: of those whose `taught` cannot be told from the highest, "risk" takes what copied least, "cost" what
            takes the fewest evaluations; of all of them where it was not measured.
    """
    able = [c for c in candidates if c.proven]
    measured = {product: taught for product, taught in (heldout or {}).items() if taught.resolved}
    finals = [replace(c, taught=measured[c.product]) for c in able if c.product in measured] or able
    if not finals:
        return None
    if counts != "taught":
        chosen = min(_untold(finals), key=_least_risk if counts == "risk" else _least_cost)
    elif any(c.left or c.alignment for c in finals):
        chosen = min(_best_aligned(_most_taught(finals)), key=_price)
    else:
        return max(finals, key=_gain)
    return next(c for c in able if c.product == chosen.product)


def _most_taught(candidates: Sequence[ProductCandidate]) -> Sequence[ProductCandidate]:
    """Those that are level with the highest; all of them where not every one was measured."""
    if not all(c.left for c in candidates):
        return candidates
    plain, ruled = by_kind(candidates)
    if plain and ruled and not _below(max(plain, key=_gain), max(ruled, key=_gain)):
        candidates = plain
    highest = max(c.gain for c in candidates)
    return [c for c in candidates if c.gain >= highest - LEVEL]


def _untold(candidates: Sequence[ProductCandidate]) -> Sequence[ProductCandidate]:
    """Those whose `taught` cannot be told from the highest; all of them where not every one was measured."""
    if not candidates or not all(c.left for c in candidates):
        return candidates
    top = max(candidates, key=_gain)
    return [c for c in candidates if c is top or not _below(c, top)]


def _gain(candidate: ProductCandidate) -> float:
    return candidate.gain


def _best_aligned(candidates: Sequence[ProductCandidate]) -> Sequence[ProductCandidate]:
    """Those that cannot be told from the best aligned; all of them where not every one was measured."""
    values = [c.alignment.value for c in candidates if c.alignment]
    if len(values) < len(candidates):
        return candidates
    top = candidates[values.index(max(values))]
    return [c for c in candidates if c is top or not _aligned_below(c, top)]


def _below(candidate: ProductCandidate, top: ProductCandidate) -> bool:
    assert candidate.taught is not None
    assert top.taught is not None
    return taught_difference(top.taught, candidate.taught).low > 0


def _aligned_below(candidate: ProductCandidate, top: ProductCandidate) -> bool:
    if candidate.pair_alignment is None or top.pair_alignment is None:
        return False
    return top.pair_alignment.above(candidate.pair_alignment).low > 0


def _least_risk(candidate: ProductCandidate) -> tuple[float, float]:
    return candidate.risk.value, -candidate.gain


def _least_cost(candidate: ProductCandidate) -> tuple[float, float]:
    return round(candidate.evals_per_sample, 6), -candidate.gain


def _price(candidate: ProductCandidate) -> tuple[bool, float, float, bool, float]:
    product, evals = candidate.product, round(candidate.evals_per_sample, 6)
    return not product.plain, evals, -product.strength, bool(product.update_filter), -candidate.gain
