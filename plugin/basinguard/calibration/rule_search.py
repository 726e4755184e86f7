"""From exits to a promise: the boldest transition whose risk is proven to stay within alpha.

A rule is a *setting* (the scales before and after, refinement, anchor) and a transition. For each setting that is
tested, transitions are ordered from the safest (guidance on late) to the boldest and tested one after the other; the
first that cannot be proven ends the sequence. So P(risk of the chosen rule > alpha) <= delta, however many there are.
Nothing is extrapolated: only what was sampled can be chosen.

Which settings are worth testing is decided on pilot pairs of their own (`explore`, `finalists`); because the promise
rests on other pairs, that choice needs no correction.

Among what is proven the choice is free: best alignment first, and among rules whose alignment cannot be told from the
best, best quality, see `best`.

Source: Learn-then-Test with fixed sequence testing, arXiv 2110.01052, sections 3.1 and 3.2; choosing what to test on
separate data: Pareto Testing, arXiv 2210.07913, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..basin.trajectories import run_branch, run_trunk
from ..core import stats
from .candidate import Candidate, Scores, Setting
from .trial import Trial, quality_of, refined_grid


def frontier(
    trial: Trial, setting: Setting, *, alpha: float, delta: float, positions: Sequence[int] | None = None
) -> Iterator[Candidate]:
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
    for candidate in _measured(trial, [setting], positions, alpha):
        kept = candidate.p_value <= delta
        yield replace(candidate, kept=kept)
        if not kept:
            return


def explore(
    trial: Trial, settings: Sequence[Setting], *, alpha: float, positions: Sequence[int] | None = None
) -> list[Candidate]:
    """Measures every setting at every transition, with no promise: what `finalists` chooses from.

    Settings that share what happens before the transition share those trajectories.
    """
    require_terms(alpha, 0.5)
    return [replace(candidate, pilot=True) for candidate in _measured(trial, settings, positions, alpha)]


def finalists(pilot: Sequence[Candidate], count: int, allowed: float) -> list[Setting]:
    """The settings worth testing: those that `best` would choose, one after the other, where they copy little.

    Args:
        pilot: from `explore`.
        count: how many to return at most.
        allowed: share of copies that would still be proven, see `stats.largest_proven`; settings that copy more at
            every transition come last, the least dangerous first.
    """
    found: list[Setting] = []
    left = list(pilot)
    while left and len(found) < count:
        fair = [c for c in left if c.risk.value <= allowed]
        chosen = _preferred(fair) if fair else min(left, key=lambda c: c.risk.value)
        found.append(chosen.setting)
        left = [c for c in left if c.setting != chosen.setting]
    return found


def best(candidates: Iterable[Candidate]) -> Candidate | None:
    """Of the candidates that keep the promise, the one to ship; None when there is none.

    The one with the best alignment, unless quality was measured: then, of all whose alignment cannot be told from the
    best one's (the interval of the difference, pair by pair, covers 0), the one with the best quality. The bolder
    transition breaks ties; without alignment and quality it decides alone.

    Choosing among proven candidates needs no further correction: the promise covers all of them at once.
    """
    kept = [c for c in candidates if c.kept]
    return _preferred(kept) if kept else None


def _preferred(candidates: Sequence[Candidate]) -> Candidate:
    top = max(candidates, key=_value)
    measured = [(c, c.quality.value) for c in candidates if c.quality is not None]
    if len(measured) < len(candidates):
        return top
    level = [(c, distance) for c, distance in measured if not _aligns_worse(c, top)]
    return min(level, key=lambda found: (found[1], -found[0].transition))[0]


def _aligns_worse(candidate: Candidate, top: Candidate) -> bool:
    """Whether the best alignment is above this one by more than chance explains."""
    if candidate.aligned is None or top.aligned is None:
        return False
    return top.aligned.above(candidate.aligned).low > 0


def shortfall(alpha: float, delta: float, pairs: int) -> str:
    """Says in words how many pairs a promise would take, or "" when there are enough for a spotless result.

    Example:
        >>> shortfall(0.05, 0.05, 20)
        'no promise: 20 pairs cannot prove a risk of at most 5% with 95% confidence; 39 more pairs would'
    """
    needed = stats.pairs_needed(alpha, delta)
    if pairs >= needed:
        return ""
    return (
        f"no promise: {pairs} pairs cannot prove a risk of at most {alpha:.0%} with {1 - delta:.0%} confidence; "
        f"{needed - pairs} more pairs would"
    )


def require_terms(alpha: float, delta: float) -> None:
    """Refuses what cannot be promised.

    Raises:
        ValueError: alpha or delta outside (0, 1).
    """
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: expected a number strictly between 0 and 1")


def _measured(
    trial: Trial, settings: Sequence[Setting], positions: Sequence[int] | None, alpha: float
) -> Iterator[Candidate]:
    """Every setting at every position, the safest position first within each; nothing is decided here."""
    prefixes: dict[tuple[float, bool], Tensor] = {}
    for setting in settings:
        start = (setting.before, setting.anchor)
        if start not in prefixes:
            prefixes[start] = run_trunk(trial.set_to(setting), trial.pairs, setting.before).pair_states
        for position in sorted(positions or range(len(trial.probe.timesteps)), reverse=True):
            yield _candidate(trial, setting, position, prefixes[start][position], alpha)


def _candidate(trial: Trial, setting: Setting, position: int, x: Tensor, alpha: float) -> Candidate:
    """Switches guidance on at `position`, from the states `x` there, and looks at what comes out."""
    pairs, timestep = trial.pairs, float(trial.probe.timesteps[position])
    before = trial.probe.count.total
    ends = _finish(trial, setting, position, x)
    cost = trial.probe.count.total - before
    hits = trial.judge(ends, pairs.prompt)
    aligned = Scores(trial.align(ends, pairs.prompt), pairs.prompt) if trial.align else None
    each_before = 1 if setting.before in (0.0, 1.0) else 2
    return Candidate(
        transition=timestep,
        sigma=float(trial.probe.schedule.sigma(timestep)),
        setting=setting,
        risk=stats.rate(hits, pairs.prompt),
        p_value=stats.binomial_p_value(int(hits.sum()), len(pairs), alpha),
        alignment=aligned.estimate() if aligned else None,
        evals_per_sample=int(trial.probe.path.first[position]) * each_before + cost / len(pairs),
        kept=False,
        quality=quality_of(trial, ends),
        aligned=aligned,
    )


def _finish(trial: Trial, setting: Setting, position: int, x: Tensor) -> Tensor:
    """Plain CFG from `position` to the end: clean latents."""
    probe, prompt = trial.set_to(setting), trial.pairs.prompt
    if setting.refine == 1:
        return run_branch(probe, x, prompt, torch.full_like(prompt, position))
    finer = replace(probe, timesteps=refined_grid(probe.timesteps, position, setting.refine))
    return run_branch(finer, x, prompt, torch.zeros_like(prompt))


def _value(candidate: Candidate) -> tuple[float, float]:
    """What makes one rule better than another that is as safe."""
    return candidate.alignment.value if candidate.alignment else 0.0, candidate.transition
