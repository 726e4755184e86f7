"""From what was searched to what is proven: ladders of products, each from the safest to the boldest.

The search has few samples of many products. Those that may ship are ranked on more samples, which serve nothing else;
where a proof begins, and in which order it goes on, is decided by these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .candidate import Product, ProductCandidate, by_kind, hopeless, strongest
from .choice import LEVEL
from .danger import Danger, dangers
from .design import Design
from .terms import CONTENDERS, FIRST, CalibrationTerms

LIKELY = 0.5  # chance of a proof's success that is worth beginning with


@dataclass(frozen=True)
class Ladder:
    """Products to be proven, safest first.

    Attributes:
        steps: they.
        start: the boldest whose proof is likely to succeed, where it begins; 0 where none is.
    """

    steps: tuple[Product, ...]
    start: int = 0


def contenders(searched: Sequence[ProductCandidate], terms: CalibrationTerms) -> list[Product]:
    """What is ranked: of plain CFG and of rules, those with the most gain that may keep the risk.

    Of each kind also a ladder of few steps from the safest on, so that something is left where the boldest fail, which
    few samples do not tell; and plain CFG with the best whole fine-tune, which needs no rule at all.
    """
    plain, ruled = by_kind([c for c in searched if c.product.strength > 0])
    whole, short = _whole(plain, terms.alpha), replace(terms, chain=CONTENDERS)
    kinds = [kind for kind in (plain, ruled) if kind]
    chosen = [c for kind in kinds for c in (*strongest(kind, terms.alpha, CONTENDERS), *ladder(kind, short))]
    chosen += [whole] if whole else []
    products = {c.product for c in chosen}
    return [c.product for c in searched if c.product in products]


def chains(ranked: Sequence[ProductCandidate], terms: CalibrationTerms, design: Design) -> list[Ladder]:
    """What is to be proven: a ladder of plain products, and one of rules where a rule promises to keep more.

    Where cost counts, rules are on it in any case: a prefix without a prompt saves evaluations. Where risk counts,
    every proof begins with the safest.

    Plain CFG with a whole fine-tune at the user's own scale is on the ladder wherever it may be safe: proven, it needs
    no rule at all.

    Args:
        ranked: the contenders.
        terms: what is to be promised.
        design: of the proof.
    """
    plain, ruled = by_kind(ranked)
    steps = ladder(plain, terms, always=_whole(plain, terms.alpha))
    rungs = ladder(ruled, terms) if ruled else []
    if rungs and terms.counts != "cost" and not _keeps_more(rungs, steps, terms.alpha):
        rungs = []
    elif rungs and all(hopeless(c, terms.alpha) for c in steps):
        steps = []
    order = dangers(ranked)
    return [
        Ladder(tuple(c.product for c in chain), 0 if terms.counts == "risk" else _start(chain, order, terms, design))
        for chain in (steps, rungs)
        if chain
    ]


def _whole(plain: Sequence[ProductCandidate], alpha: float) -> ProductCandidate | None:
    """The whole fine-tune with the most gain that may keep the risk."""
    whole = [c for c in plain if c.product.whole and not hopeless(c, alpha)]
    return max(whole, key=lambda c: c.gain, default=None)


def _start(
    chain: Sequence[ProductCandidate], order: Mapping[Product, Danger], terms: CalibrationTerms, design: Design
) -> int:
    """The boldest whose proof is likely to succeed, its neighbours considered; the safest where there is none."""

    def chance(c: ProductCandidate) -> float:
        return design.chance(order[c.product][0] * c.risk.n, c.risk.n, terms.alpha, FIRST * terms.share)

    return max((k for k, c in enumerate(chain) if chance(c) >= LIKELY), default=0)


def ladder(
    candidates: Sequence[ProductCandidate], terms: CalibrationTerms, always: ProductCandidate | None = None
) -> list[ProductCandidate]:
    """The candidates that nothing safer outdoes, safest first: at most `terms.chain` of them, and `always`.

    Left out is what copies too often to be proven, and what keeps nothing of what was taught, unless nothing else is
    left: then the least dangerous stands alone. Where all of them have the same weights and the same transition, the
    best of an earlier epoch, or of a smaller share, goes below, so that one unlucky proof does not leave nothing to
    promise.
    """
    order = dangers(candidates)
    able = [c for c in candidates if not hopeless(c, terms.alpha)]
    least = min(candidates, key=lambda c: order[c.product])
    useful = [c for c in able if c.taught is None or c.gain > 0] or able or [least]
    front: list[ProductCandidate] = []
    for candidate in sorted(useful, key=lambda c: order[c.product]):
        if not front or candidate.gain > front[-1].gain:
            front.append(candidate)
    front = _thinned(front, terms.chain)
    added = [always] if always is not None and always not in front else []
    rungs = sorted([*front, *added], key=lambda c: order[c.product])
    below = [c for c in useful if _milder(c.product, rungs[0].product)] if _alike(rungs) else []
    below = [c for c in below if c.product.epoch != rungs[0].product.epoch] or below
    return [max(below, key=lambda c: c.gain), *rungs] if below else rungs


def _alike(rungs: Sequence[ProductCandidate]) -> bool:
    """Whether they differ in nothing that orders them by danger, whatever was measured."""
    return len({(p.epoch, p.strength, p.update_filter, p.guidance.transition) for p in (c.product for c in rungs)}) == 1


def _milder(product: Product, other: Product) -> bool:
    """Whether it has less of the fine-tune in its weights, of no later epoch, under the same kind of guidance."""
    if product.guidance.plain != other.guidance.plain or product.strength > other.strength:
        return False
    if product.epoch == other.epoch:
        return product.strength < other.strength
    return product.epoch is not None and (other.epoch is None or product.epoch < other.epoch)


def _thinned(front: Sequence[ProductCandidate], most: int) -> list[ProductCandidate]:
    """At most so many of a ladder; what adds least to what is kept goes, the safest never."""
    rungs = list(front)
    while len(rungs) > most:
        del rungs[min(range(1, len(rungs) - 1), key=lambda k: rungs[k + 1].gain - rungs[k - 1].gain, default=-1)]
    return rungs


def _keeps_more(rungs: Sequence[ProductCandidate], steps: Sequence[ProductCandidate], alpha: float) -> bool:
    """Whether the best rule seems to keep more than the best plain product, by more than what is level.

    Of both only what copied at most `alpha` counts: the rest is not hopeless, and yet more likely to fail. A second
    ladder takes half of delta from the first, and a rule is one more thing that people must apply. Samples of training
    captions, where copies count as nothing, seldom tell the two apart with confidence, and held-out prompts decide
    later: so what seems better is proven.
    """
    rule, step = (max((c.gain for c in each if c.risk.value <= alpha), default=None) for each in (rungs, steps))
    if step is None:
        return True
    return rule is not None and rule > step + (LEVEL if rungs[0].left else 0.0)
