"""Which products are worth a proof: a coarse grid on few samples, then the ladder from the safest to the boldest.

A product is (epoch, strength, rule or plain CFG, scale). The grid is walked in three rounds so that it stays small:
plain CFG at every epoch and strength; then other guidance scales around the best; then rules on the whole fine-tune of
the best epoch. Nothing here is promised, and no pair or prompt seed of the search serves the proof, so the choice of
what to prove needs no correction.

Source: Pareto Testing, arXiv 2210.07913, section 4 (choose and order on separate data, then test in sequence).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from torch import Tensor

from ..core import stats
from ..core.record import ALWAYS_ON, Guidance
from ..diffusion.noise_schedule import NoiseSchedule
from .bench import Bench
from .candidate import Product, ProductCandidate
from .grids import grid_positions
from .terms import CalibrationTerms, Setting
from .weights import Weights

COARSE = 4  # transitions of a rule that are searched where none are named
LEADERS = 2  # (epoch, strength) around which other scales are tried
HOPELESS = 0.2  # as many copies as these happen with this chance at most where the risk is alpha


def explore(bench: Bench, weights: Weights, terms: CalibrationTerms, timesteps: Tensor, noise: NoiseSchedule) -> list:
    """Measures the grid; see the module for its rounds.

    Args:
        bench: of the search.
        weights: epochs and strengths to choose from.
        terms: the rest of the grid.
        timesteps, noise: the sampler's grid and the model's noise schedule.

    Returns:
        Every candidate, `ProductCandidate`; the base model first where it is known.
    """
    first, *others = terms.plain_scales(bench.guard.plan.scale)
    strengths = terms.strengths if weights.graded else (1.0,)
    grid = [Product(plain_cfg(first, noise), s, e) for e in weights.epochs for s in sorted(strengths)]
    base = [Product(plain_cfg(first, noise), 0.0, weights.epochs[-1])] if weights.graded else []
    tried = list(bench.measure(weights, [*base, *grid]))
    around = _neighbours(leaders(tried, bench.alpha), grid)
    scaled = [replace(p, guidance=plain_cfg(scale, noise)) for p in around for scale in others]
    tried += bench.measure(weights, scaled)
    rules = rules_of(terms, timesteps, noise, first)
    best = leaders(tried, bench.alpha)[0].product
    return tried + list(bench.measure(weights, [Product(rule, 1.0, best.epoch) for rule in rules]))


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
    return sorted(able, key=lambda c: -c.gain)[:LEADERS] or [min(plain, key=_danger)]


def _neighbours(chosen: Iterable[ProductCandidate], grid: Sequence[Product]) -> list[Product]:
    """The chosen products with the next strengths below and above, each once, in the grid's order."""
    near = set()
    for candidate in chosen:
        own = [p for p in grid if p.epoch == candidate.product.epoch]
        at = own.index(candidate.product)
        near |= set(map(id, own[max(0, at - 1) : at + 2]))
    return [p for p in grid if id(p) in near]


def hopeless(candidate: ProductCandidate, alpha: float) -> bool:
    """Whether a proof is not worth its samples: so many copies are improbable where the risk is alpha."""
    hits, n = round(candidate.risk.value * candidate.risk.n), candidate.risk.n
    return hits > 0 and 1 - stats.binomial_p_value(hits - 1, n, alpha) < HOPELESS


def chains(tried: Sequence[ProductCandidate], terms: CalibrationTerms) -> list[list[Product]]:
    """What is to be proven: a ladder of plain products, and one of rules where a rule promises to keep more.

    Plain CFG with a whole fine-tune at the user's own scale is on the ladder wherever it may be safe: proven, it needs
    no rule at all.
    """
    usable = [c for c in tried if c.product.strength > 0]
    plain, ruled = ([c for c in usable if c.product.guidance.plain == kind] for kind in (True, False))
    steps = ladder(plain, terms)
    whole = max((c for c in plain if c.product.strength == 1), key=lambda c: c.gain, default=None)
    if whole and whole not in steps and not hopeless(whole, terms.alpha):
        steps = sorted([*steps, whole], key=_danger)
    rungs = ladder(ruled, terms) if ruled else []
    if rungs and not _keeps_more(rungs, steps, terms.alpha):
        rungs = []
    return [[c.product for c in chain] for chain in (steps, rungs) if chain]


def ladder(candidates: Sequence[ProductCandidate], terms: CalibrationTerms) -> list[ProductCandidate]:
    """The candidates that nothing safer outdoes, safest first, at most `terms.chain` of them.

    Left out is what copies too often to be proven, and what keeps nothing of what was taught, unless nothing else is
    left: then the least dangerous stands alone.
    """
    able = [c for c in candidates if not hopeless(c, terms.alpha)]
    useful = [c for c in able if c.taught is None or c.gain > 0] or able or [min(candidates, key=_danger)]
    front: list[ProductCandidate] = []
    for candidate in sorted(useful, key=_danger):
        if not front or candidate.gain > front[-1].gain:
            front.append(candidate)
    if len(front) <= terms.chain:
        return front
    return [front[round(k * (len(front) - 1) / max(terms.chain - 1, 1))] for k in range(terms.chain)]


def _danger(candidate: ProductCandidate) -> tuple[float, float]:
    """Copies in the search; of products without one, how near their samples come to the training images."""
    return candidate.risk.value, candidate.nearest


def _keeps_more(rungs: Sequence[ProductCandidate], steps: Sequence[ProductCandidate], alpha: float) -> bool:
    best = max(c.gain for c in rungs)
    return best > max((c.gain for c in steps if not hopeless(c, alpha)), default=float("-inf"))
