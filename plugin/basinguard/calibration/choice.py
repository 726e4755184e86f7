"""Of the products that are proven, the one to ship: most taught, then best aligned, then cheapest.

Choosing among proven candidates needs no correction: the promise covers all of them at once. Nearness to the base
model is no merit anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..similarity.taught import Taught, taught_difference
from .candidate import Product, ProductCandidate

LEVEL = 0.03  # of `taught`: less than anybody sees, so what is simpler or cheaper may ship instead
FINALISTS = 3


def finalists(candidates: Iterable[ProductCandidate], most: int = FINALISTS) -> list[ProductCandidate]:
    """The proven candidates whose `taught` cannot be told from the highest, most first: worth more samples.

    One alone where nothing is to be decided; none where nothing is proven, or it was not measured.
    """
    able = sorted((c for c in candidates if c.proven and c.left), key=lambda c: -c.gain)
    return [c for c in able if c is able[0] or not _below(c, able[0])][:most]


def best(
    candidates: Iterable[ProductCandidate], heldout: Mapping[Product, Taught] | None = None
) -> ProductCandidate | None:
    """The proven candidate to ship; None when none is proven.

    Those whose `taught` is at most `LEVEL` below the highest are level; of them, those whose alignment cannot be told
    from the best; of them the cheapest: fewest evaluations, plain CFG before a rule, the whole fine-tune before a share
    of it. Where neither was measured the boldest is taken.

    Args:
        candidates: tested ones.
        heldout: `taught` of the finalists on held-out prompts, by which they are compared; without it all are, by that
            on training captions.
    """
    able = [c for c in candidates if c.proven]
    measured = {product: taught.value.value for product, taught in (heldout or {}).items() if taught.value}
    finals = [c for c in able if c.product in measured] or able
    if not finals:
        return None
    if not any(c.left or c.alignment for c in finals):
        return max(finals, key=lambda c: c.gain)
    level = _most_taught(finals, measured or {c.product: c.left.value for c in finals if c.left})
    return min(_best_aligned(level), key=_price)


def _most_taught(candidates: Sequence[ProductCandidate], taught: Mapping[Product, float]) -> Sequence[ProductCandidate]:
    """Those that are level with the highest; all of them where not every one was measured."""
    if any(c.product not in taught for c in candidates):
        return candidates
    highest = max(taught[c.product] for c in candidates)
    return [c for c in candidates if taught[c.product] >= highest - LEVEL]


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


def _price(candidate: ProductCandidate) -> tuple[float, bool, float, float]:
    product = candidate.product
    return round(candidate.evals_per_sample, 6), not product.guidance.plain, -product.strength, -candidate.gain
