"""From exits to a promise: the boldest transition whose risk is proven to stay within alpha.

A rule is a *setting* (the scales before and after, refinement, anchor) and a transition. For each setting that is
tested, transitions are ordered from the safest (guidance on late) to the boldest and tested in a `fixed_sequence`.
Nothing is extrapolated: only what was sampled can be chosen.

Which settings are worth testing is decided on pilot pairs of their own (`explore`, `finalists`); because the promise
rests on other pairs, that choice needs no correction.

Among what is proven the choice is free: best alignment first, and among rules whose alignment cannot be told from the
best, best quality, see `best`.

Source: Learn-then-Test, arXiv 2110.01052, sections 3.1 and 3.2; choosing what to test on separate data: Pareto
Testing, arXiv 2210.07913, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from ..basin.trajectories import run_branch, run_trunk
from ..core.record import Guidance
from .candidate import RuleCandidate
from .fixed_sequence import fixed_sequence
from .grids import refined_grid
from .promise import require_terms
from .terms import Setting
from .trial import Trial


def frontier(
    trial: Trial, setting: Setting, *, alpha: float, delta: float, positions: Sequence[int] | None = None
) -> Iterator[RuleCandidate]:
    """Tests a setting's transitions from the safest to the boldest and stops after the first that cannot be proven.

    Args:
        trial: the model and its pairs.
        setting: the rest of the rule.
        alpha: the risk that may not be exceeded, in (0, 1).
        delta: the chance that the promise is broken, in (0, 1).
        positions: grid positions to try, any order; every one by default.

    Raises:
        ValueError: alpha or delta out of range.
    """
    require_terms(alpha, delta)
    return fixed_sequence(_measured(trial, [setting], positions, alpha), delta)


def explore(
    trial: Trial, settings: Sequence[Setting], *, alpha: float, positions: Sequence[int] | None = None
) -> list[RuleCandidate]:
    """Measures every setting at every transition, with no promise: what `finalists` chooses from.

    Settings that share what happens before the transition share those trajectories.
    """
    require_terms(alpha, 0.5)
    return [replace(candidate, pilot=True) for candidate in _measured(trial, settings, positions, alpha)]


def finalists(pilot: Sequence[RuleCandidate], count: int, allowed: float) -> list[Setting]:
    """The settings worth testing: those that `best` would choose, one after the other, where they copy little.

    Args:
        pilot: from `explore`.
        count: how many to return at most.
        allowed: share of copies that would still be proven, see `stats.largest_proven`; settings that copy more at
            every transition come last, the least dangerous first.
    """
    chosen: list[Setting] = []
    left = list(pilot)
    while left and len(chosen) < count:
        safe = [c for c in left if c.risk.value <= allowed]
        next_best = _preferred(safe) if safe else min(left, key=lambda c: c.risk.value)
        chosen.append(next_best.setting)
        left = [c for c in left if c.setting != next_best.setting]
    return chosen


def best(candidates: Iterable[RuleCandidate]) -> RuleCandidate | None:
    """Of the candidates that keep the promise, the one to ship; None when there is none.

    The one with the best alignment, unless quality was measured: then, of all whose alignment cannot be told from the
    best one's (the interval of the difference, pair by pair, covers 0), the one with the best quality. The bolder
    transition breaks ties; without alignment and quality it decides alone.

    Choosing among proven candidates needs no further correction: the promise covers all of them at once.
    """
    proven = [c for c in candidates if c.proven]
    return _preferred(proven) if proven else None


def _preferred(candidates: Sequence[RuleCandidate]) -> RuleCandidate:
    top = max(candidates, key=_value)
    measured = [(c.quality.value, -c.guidance.transition, c) for c in candidates if c.quality is not None]
    if len(measured) < len(candidates):
        return top
    level = [entry for entry in measured if not _aligns_worse(entry[-1], top)]
    return min(level, key=lambda entry: entry[:2])[-1]


def _aligns_worse(candidate: RuleCandidate, top: RuleCandidate) -> bool:
    """Whether the best alignment is above this one by more than chance explains."""
    if candidate.pair_alignment is None or top.pair_alignment is None:
        return False
    return top.pair_alignment.above(candidate.pair_alignment).low > 0


def _value(candidate: RuleCandidate) -> tuple[float, float]:
    """What makes one rule better than another that is as safe."""
    return candidate.alignment.value if candidate.alignment else 0.0, candidate.guidance.transition


def _measured(
    trial: Trial, settings: Sequence[Setting], positions: Sequence[int] | None, alpha: float
) -> Iterator[RuleCandidate]:
    """Every setting at every position, the safest position first within each; nothing is decided here."""
    prefixes: dict[tuple[float, bool], Tensor] = {}
    for setting in settings:
        start = (setting.before, setting.anchor)
        if start not in prefixes:
            prefixes[start] = run_trunk(trial.set_to(setting), trial.pairs, setting.before).pair_states
        for position in sorted(positions or range(len(trial.probe.timesteps)), reverse=True):
            yield _candidate(trial, setting, position, prefixes[start][position], alpha)


def _candidate(trial: Trial, setting: Setting, position: int, x: Tensor, alpha: float) -> RuleCandidate:
    """Switches guidance on at `position`, from the states `x` there, and measures what comes out."""
    probe, timestep = trial.probe, float(trial.probe.timesteps[position])
    before = probe.count.total
    latents = _finish(trial, setting, position, x)
    evals = probe.count.total - before
    each_before = 1 if setting.before in (0.0, 1.0) else 2
    return trial.measure(
        RuleCandidate,
        latents,
        alpha,
        guidance=Guidance(transition=timestep, sigma=float(probe.schedule.sigma(timestep)), **asdict(setting)),
        evals_per_sample=int(probe.path.first[position]) * each_before + evals / len(trial.pairs),
    )


def _finish(trial: Trial, setting: Setting, position: int, x: Tensor) -> Tensor:
    """Plain CFG from `position` to the end: clean latents."""
    probe, prompt = trial.set_to(setting), trial.pairs.prompt
    if setting.refine == 1:
        return run_branch(probe, x, prompt, torch.full_like(prompt, position))
    finer = replace(probe, timesteps=refined_grid(probe.timesteps, position, setting.refine))
    return run_branch(finer, x, prompt, torch.zeros_like(prompt))
