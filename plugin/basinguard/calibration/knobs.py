"""Which knob keeps most on this run: the epoch, a share of it, another scale, a rule, a schedule, or a filter."""

from __future__ import annotations

from collections.abc import Sequence

from .candidate import Product, ProductCandidate, of_phase

EPOCH, SHARE = "the epoch alone", "a share of the fine-tune"
SCALE, RULE = "another guidance scale", "a rule in guidance"
SCHEDULE, FILTER = "a strength by timestep", "a filter of the update"


def knob(product: Product, scale: float) -> str:
    """What a product turns, besides the epoch; a share at another scale counts as both, and so as the share.

    A strength by timestep, or a filter of the update, counts as that, whatever its guidance.

    Args:
        product: what is sampled.
        scale: the user's own guidance scale.
    """
    if product.strength_schedule is not None:
        return SCHEDULE
    if product.update_filter:
        return FILTER
    if not product.guidance.plain:
        return RULE
    if product.strength < 1:
        return SHARE
    return EPOCH if product.scale == scale else SCALE


def best_of_each(tried: Sequence[ProductCandidate], alpha: float, scale: float) -> dict[str, ProductCandidate]:
    """The most taught of each knob, among what was searched and copied at most `alpha` there; by knob, best first.

    Nothing is promised by it: it says where to look next, on the few samples of the search.
    """
    able = [c for c in of_phase(tried, "search") if c.product.strength > 0 and c.risk.value <= alpha and c.left]
    best: dict[str, ProductCandidate] = {}
    for candidate in sorted(able, key=lambda c: -c.gain):
        best.setdefault(knob(candidate.product, scale), candidate)
    return best


def knobs_text(tried: Sequence[ProductCandidate], alpha: float, scale: float) -> str:
    """One line on them, "" where nothing was safe and measured."""
    best = best_of_each(tried, alpha, scale)
    if not best:
        return ""
    parts = [f"{name} {c.gain:.2f} ({c.product})" for name, c in best.items()]
    return f"most taught at a searched risk of at most {alpha:.0%}: {'; '.join(parts)}"
