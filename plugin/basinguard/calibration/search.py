"""Which products are worth a proof: a coarse grid on few samples, then the ladder from the safest to the boldest.

A product is (epoch, strength, rule or plain CFG, scale). The grid is walked in rounds so that few of it are sampled:
plain CFG with the whole fine-tune of every epoch; every other strength of the best and of the epoch after them; the
strengths between around the best of these; other guidance scales there; then rules on the whole fine-tune of the best
epoch. Nothing here is promised, and no pair of the search serves the proof, so the choice of what to prove needs no
correction.

Source: Pareto Testing, arXiv 2210.07913, section 4 (choose and order on separate data, then test in sequence).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from ..core.record import ALWAYS_ON, Guidance
from ..diffusion.noise_schedule import NoiseSchedule
from ..similarity.taught import taught_difference
from .bench import Bench
from .candidate import Product, ProductCandidate, too_many
from .danger import Danger, dangers
from .grids import grid_positions
from .terms import CalibrationTerms, Setting
from .weights import Weights

COARSE = 4  # transitions of a rule that are searched where none are named
LEADERS = 2  # (epoch, strength) around which other scales are tried


def explore(
    bench: Bench, weights: Weights, terms: CalibrationTerms, timesteps: Tensor, noise: NoiseSchedule
) -> list[ProductCandidate]:
    """Measures the grid; see the module for its rounds.

    Args:
        bench: of the search.
        weights: epochs and strengths to choose from.
        terms: the rest of the grid.
        timesteps, noise: the sampler's grid and the model's noise schedule.

    Returns:
        Every candidate; the base model first where it is known.
    """
    scale, *others = terms.plain_scales(bench.guard.plan.scale)
    strengths = sorted(terms.strengths) if weights.graded else [1.0]
    grid = [Product(plain_cfg(scale, noise), s, e) for e in weights.epochs for s in strengths]
    base = [Product(plain_cfg(scale, noise), 0.0, weights.epochs[-1])] if weights.graded else []
    tried = list(bench.measure(weights, [*base, *(p for p in grid if p.strength == strengths[-1])]))

    def measure(products: Iterable[Product]) -> None:
        tried.extend(bench.measure(weights, [p for p in products if p not in {c.product for c in tried}]))

    epochs = _epochs_to_share(leaders(tried, bench.alpha), weights.epochs)
    measure(p for p in grid if p.epoch in epochs and p.strength in strengths[::-2])
    measure(_neighbours(leaders(tried, bench.alpha), grid))
    near = _neighbours(leaders(tried, bench.alpha)[:1], grid)
    measure(replace(p, guidance=plain_cfg(other, noise)) for p in near for other in others)
    epoch = leaders(tried, bench.alpha)[0].product.epoch
    rules = rules_of(terms, timesteps, noise, scale)
    return tried + list(bench.measure(weights, [Product(rule, 1.0, epoch) for rule in rules]))


def plain_cfg(scale: float, noise: NoiseSchedule) -> Guidance:
    """Plain CFG as a rule whose guidance is on from the first timestep."""
    return Guidance(transition=ALWAYS_ON, sigma=float(noise.sigma(ALWAYS_ON)), before=scale, after=scale)


def rules_of(terms: CalibrationTerms, timesteps: Tensor, noise: NoiseSchedule, scale: float) -> list[Guidance]:
    """Every setting at every transition that is searched."""
    positions = grid_positions(timesteps, terms.transitions)
    if not terms.transitions and len(positions) > COARSE:
        positions = [positions[(2 * k + 1) * len(positions) // (2 * COARSE)] for k in range(COARSE)]
    return [rule(setting, float(timesteps[at]), noise, scale) for setting in terms.settings for at in positions]


def rule(setting: Setting, transition: float, noise: NoiseSchedule, scale: float) -> Guidance:
    """A setting at a transition; `scale` where it names none."""
    numbers = asdict(replace(setting, after=scale if setting.after is None else setting.after))
    return Guidance(transition=transition, sigma=float(noise.sigma(transition)), **numbers)


def leaders(tried: Sequence[ProductCandidate], alpha: float) -> list[ProductCandidate]:
    """The plain candidates with the most gain, of those that may keep the risk; the least dangerous where none may."""
    plain = [c for c in tried if c.product.guidance.plain and c.product.strength > 0]
    able = [c for c in plain if not hopeless(c, alpha)]
    order = dangers(plain)
    return sorted(able, key=lambda c: -c.gain)[:LEADERS] or [min(plain, key=lambda c: order[c.product])]


def _neighbours(chosen: Iterable[ProductCandidate], grid: Sequence[Product]) -> list[Product]:
    """The strengths of the chosen products' epochs that are at most one step from theirs, in the grid's order."""
    near: list[Product] = []
    for epoch, strength in ((c.product.epoch, c.product.strength) for c in chosen):
        own = [p for p in grid if p.epoch == epoch]
        at = [p.strength for p in own].index(strength)
        near += own[max(0, at - 1) : at + 2]
    return [p for p in grid if p in near]


def _epochs_to_share(best: Sequence[ProductCandidate], epochs: Sequence[int | None]) -> set[int | None]:
    """The epochs of these candidates, best first, and the one after the best: a share of it may be safe yet."""
    own = [c.product.epoch for c in best]
    return {*own, *epochs[epochs.index(own[0]) + 1 :][:1]}


def hopeless(candidate: ProductCandidate, alpha: float) -> bool:
    """Whether a proof is not worth its samples: so many copies are improbable where the risk is alpha."""
    return too_many(round(candidate.risk.value * candidate.risk.n), candidate.risk.n, alpha)


@dataclass(frozen=True)
class Ladder:
    """Products to be proven, safest first.

    Attributes:
        steps: they.
        start: the boldest that copied nothing in the search, where a proof may begin; 0 where all of them copied.
    """

    steps: tuple[Product, ...]
    start: int = 0


def chains(tried: Sequence[ProductCandidate], terms: CalibrationTerms) -> list[Ladder]:
    """What is to be proven: a ladder of plain products, and one of rules where a rule promises to keep more.

    Plain CFG with a whole fine-tune at the user's own scale is on the ladder wherever it may be safe: proven, it needs
    no rule at all.
    """
    usable = [c for c in tried if c.product.strength > 0]
    plain, ruled = ([c for c in usable if c.product.guidance.plain == kind] for kind in (True, False))
    whole = [c for c in plain if c.product.strength == 1 and not hopeless(c, terms.alpha)]
    steps = ladder(plain, terms, always=max(whole, key=lambda c: c.gain, default=None))
    rungs = ladder(ruled, terms) if ruled else []
    if rungs and not _keeps_more(rungs, steps, terms.alpha):
        rungs = []
    elif rungs and all(hopeless(c, terms.alpha) for c in steps):
        steps = []
    order = dangers(tried)
    return [Ladder(tuple(c.product for c in chain), _start(chain, order)) for chain in (steps, rungs) if chain]


def _start(chain: Sequence[ProductCandidate], order: Mapping[Product, Danger]) -> int:
    """The boldest that copied nothing, its neighbours considered; the safest where there is none."""
    return max((k for k, c in enumerate(chain) if order[c.product][0] == 0), default=0)


def ladder(
    candidates: Sequence[ProductCandidate], terms: CalibrationTerms, always: ProductCandidate | None = None
) -> list[ProductCandidate]:
    """The candidates that nothing safer outdoes, safest first: at most `terms.chain` of them, and `always`.

    Left out is what copies too often to be proven, and what keeps nothing of what was taught, unless nothing else is
    left: then the least dangerous stands alone.
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
    return sorted([*front, *added], key=lambda c: order[c.product])


def _thinned(front: Sequence[ProductCandidate], most: int) -> list[ProductCandidate]:
    """At most so many of a ladder; what adds least to what is kept goes, the safest never."""
    rungs = list(front)
    while len(rungs) > most:
        del rungs[min(range(1, len(rungs) - 1), key=lambda k: rungs[k + 1].gain - rungs[k - 1].gain, default=-1)]
    return rungs


def _keeps_more(rungs: Sequence[ProductCandidate], steps: Sequence[ProductCandidate], alpha: float) -> bool:
    """Whether the best rule keeps more than the best plain product, by more than the search's noise.

    A second ladder takes half of delta from the first, and a rule is one more thing that people must apply.
    """
    able = [c for c in steps if not hopeless(c, alpha)]
    rule = max(rungs, key=lambda c: c.gain)
    if not able:
        return True
    step = max(able, key=lambda c: c.gain)
    if rule.left and step.left and rule.taught and step.taught:
        return taught_difference(rule.taught, step.taught).low > 0
    return rule.gain > step.gain
