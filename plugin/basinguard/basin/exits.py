"""Exits of (caption, seed) pairs: one shared unguided trunk, few short branches, and a check of the assumed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..core.report import Exit
from .early_decision import Anchors, Limits, Watcher, learn
from .exit_search import search
from .trajectories import Pairs, Probe, Trunk, branch, trunk

Judge = Callable[[Tensor, Tensor], Tensor]  # clean latents [B, ...] and their prompts [B] -> reproduced? [B] bool


@dataclass(frozen=True)
class Guided:
    """Ordinary CFG from the very start, run to the end.

    Attributes:
        ends: clean latents, [N, ...].
        trail: distance of the predicted clean latents from the own training image at every evaluation, [K, N]; None
            where no anchors were given.
        evals: sample-evaluations of the network.
    """

    ends: Tensor
    trail: Tensor | None
    evals: int


def guided(probe: Probe, pairs: Pairs, anchors: Anchors | None = None) -> Guided:
    """Samples every pair with ordinary CFG throughout; `anchors` are the training images' latents."""
    trail = torch.zeros(len(probe.path.nodes), len(pairs))

    def note(rows: Tensor, index: Tensor, denoised: Tensor) -> Tensor:
        assert anchors is not None
        trail[index, rows] = anchors.distance(denoised, pairs.prompt[rows])
        return torch.zeros_like(rows, dtype=torch.bool)

    begin = torch.zeros_like(pairs.prompt)
    ends, evals = branch(probe, probe.path.begin(pairs.noise), pairs.prompt, begin, None if anchors is None else note)
    return Guided(ends, None if anchors is None else trail, evals)


def find_exits(
    probe: Probe,
    pairs: Pairs,
    judge: Judge,
    *,
    first: Tensor | None = None,
    start: Guided | None = None,
    stem: Trunk | None = None,
    before: float = 0.0,
    anchors: Anchors | None = None,
    checks: int = 0,
    resolution: int = 1,
) -> tuple[list[Exit], int]:
    """The exit of every pair, on the probe's grid.

    Args:
        probe: the model.
        pairs: which trajectories.
        judge: says which clean latents reproduce their prompt's training image.
        first: outcome of ordinary CFG from the start, [N] bool, where it is already known.
        start: those trajectories, where they were run already.
        stem: the unguided trajectories, likewise.
        before: scale before the switch.
        anchors: latents of the training images. With them, every search starts from a guess, branches stop as soon as
            the predicted clean latents decide, and only ends that they do not decide are given to the judge.
        checks: candidates of each pair that are tried beyond the search, to see whether its outcomes are ordered.
            A pair whose outcomes are not is tried at every candidate.
        resolution: grid positions that an exit may be left open by.

    Returns:
        One `Exit` per pair, in order, and the number of network evaluations that were made here.

    Raises:
        FloatingPointError: the model returned a value that is not finite.
    """
    finder = _Finder(probe, pairs, judge, stem or trunk(probe, pairs, before))
    finder.evals = 0 if stem else finder.trunk.evals
    if first is None or (anchors is not None and start is None):
        start = guided(probe, pairs, anchors)
        finder.evals += start.evals
        first = judge(start.ends, pairs.prompt)
    unguided = judge(probe.path.latents(finder.trunk.states[-1])[finder.trunk.row], pairs.prompt)
    if anchors is not None and start is not None and start.trail is not None:
        finder.learn(anchors, start, first, unguided)
    last = finder.search(first, finder.guess(before, first), resolution)
    strange = unguided & (last < finder.count - 1)  # reproduced without any guidance, but not with late guidance
    for number in range(checks):
        strange |= finder.contradicts(last, finder.candidate(last, number), resolution)
    swept = finder.sweep(strange.nonzero().squeeze(1))
    exits = [
        _swept(probe, int(p), int(s), swept[row], bool(unguided[row]))
        if row in swept
        else _ordered(probe, int(p), int(s), int(last[row]), resolution, bool(unguided[row]))
        for row, (p, s) in enumerate(zip(pairs.prompt, pairs.seed, strict=True))
    ]
    return exits, finder.evals


class _Finder:
    """The branches of one call of `find_exits`, and what they cost."""

    def __init__(self, probe: Probe, pairs: Pairs, judge: Judge, stem: Trunk) -> None:
        self.probe, self.pairs, self.judge, self.trunk = probe, pairs, judge, stem
        self.evals, self.count = 0, len(probe.timesteps)
        self.anchors: Anchors | None = None
        self.limits: Limits | None = None
        self.dice = torch.Generator().manual_seed(0)

    def learn(self, anchors: Anchors, start: Guided, first: Tensor, unguided: Tensor) -> None:
        """Reads what decides off the trajectories that were run to the end."""
        assert start.trail is not None
        self.anchors = anchors
        ends = self.probe.path.latents(self.trunk.states[-1])[self.trunk.row]
        away = anchors.distance(ends, self.pairs.prompt)[~unguided]
        self.limits = learn(start.trail, first, away)

    def reproduces(self, rows: Tensor, index: Tensor, early: bool = True) -> Tensor:
        """Outcome of guidance from grid position `index` of each row, [len(rows)] bool."""
        prompt, watcher = self.pairs.prompt[rows], None
        if early and self.limits is not None and self.anchors is not None:
            watcher = Watcher(self.limits, self.anchors, prompt)
        ends, cost = branch(self.probe, self.trunk.at(rows, index), prompt, index, watcher)
        self.evals += cost
        if watcher is None:
            return self.judge(ends, prompt)
        outcome = watcher.outcome == 1
        open_ = watcher.outcome < 0
        if bool(open_.any()):
            outcome[open_] = self.judge(ends[open_], prompt[open_])
        return outcome

    def _of(self, part: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        return self.reproduces(part[rows], index)

    def guess(self, before: float, first: Tensor) -> Tensor | None:
        """Where the conditional prediction, read along the unguided trajectory, stops pointing to the image, [N].

        One evaluation for each halving; the closed-form exit of the toy is this very condition.
        """
        if self.limits is None or self.anchors is None or before != 0:
            return None
        limits, anchors = self.limits, self.anchors

        def points(rows: Tensor, index: Tensor) -> Tensor:
            state, node = self.trunk.at(rows, index), self.probe.path.first[index]
            prompt = self.pairs.prompt[rows]
            eps = self.probe.evaluate(self.probe.path.latents(state), self.probe.path.nodes[node], prompt)
            self.evals += len(rows)
            return anchors.distance(self.probe.path.denoised(state, eps, node), prompt) <= limits.middle

        return search(points, first, self.count).clamp(min=1)

    def search(self, first: Tensor, guess: Tensor | None, resolution: int) -> Tensor:
        """Last grid position of every pair that reproduces, [N].

        Guesses err to one side, by how much the first seed of every caption shows before the others are searched.
        """
        last, shift = torch.full_like(self.pairs.prompt, -1), 0
        pilots = torch.ones_like(first) if guess is None else _first_seeds(self.pairs)
        for part in (pilots.nonzero().squeeze(1), (~pilots).nonzero().squeeze(1)):
            begin = None if guess is None else guess[part] + shift
            last[part] = search(partial(self._of, part), first[part], self.count, guess=begin, resolution=resolution)
            if guess is not None and bool(first[part].any()):
                shift = int((last - guess)[part][first[part]].median())
        return last

    def candidate(self, last: Tensor, number: int) -> Tensor:
        """What a check tries: first the middle of the exits found, then candidates that are drawn evenly, [N].

        A pair that ordinary CFG does not reproduce is likeliest to be reproduced by guidance that begins where others
        leave.
        """
        found = last[last > 0]
        if number == 0 and len(found):
            return torch.full_like(last, int(found.median()))
        return torch.randint(1, self.count, last.shape, generator=self.dice) if self.count > 1 else 0 * last

    def contradicts(self, last: Tensor, at: Tensor, resolution: int) -> Tensor:
        """Tries the candidate `at` of every pair and compares it with the order, [N] bool."""
        known = (at > last) & (at < last + resolution) & (last >= 0)  # left open by the search: no contradiction
        return (self.reproduces(torch.arange(len(last)), at) != (at <= last)) & ~known

    def sweep(self, rows: Tensor) -> dict[int, Tensor]:
        """Outcome at every grid position of some rows, run to the end and looked at: row -> [T] bool."""
        if not len(rows):
            return {}
        outcomes = [self.reproduces(rows, torch.full_like(rows, index), early=False) for index in range(self.count)]
        return dict(zip(rows.tolist(), torch.stack(outcomes, 1), strict=True))


def _first_seeds(pairs: Pairs) -> Tensor:
    """Which pairs have the smallest seed of their caption, [N] bool."""
    same = pairs.prompt[:, None] == pairs.prompt
    return ~(same & (pairs.seed < pairs.seed[:, None])).any(1)


def _ordered(probe: Probe, caption: int, seed: int, index: int, resolution: int, unguided: bool) -> Exit:
    """Exit of a pair that reproduces down to grid position `index` and no further, or (unguided) even below it."""
    if index < 0:
        return Exit(caption=caption, seed=seed, timestep=None, sigma=None, lower=None)
    timestep, below = _timestep(probe, index), index + resolution
    lower = None if unguided else _timestep(probe, below) if below < len(probe.timesteps) else 0.0
    return Exit(caption=caption, seed=seed, timestep=timestep, sigma=_sigma(probe, timestep), lower=lower)


def _swept(probe: Probe, caption: int, seed: int, outcomes: Tensor, unguided: bool) -> Exit:
    """Exit of a pair that was tried everywhere; one that reproduces with no guidance at all never leaves."""
    hits = outcomes.nonzero().squeeze(1).tolist()
    falls = torch.cat([outcomes, torch.tensor([unguided])]).int().diff()
    monotone = not bool((falls > 0).any())
    if not hits:
        return Exit(caption=caption, seed=seed, timestep=None, sigma=None, lower=None, monotone=monotone)
    timestep, below = _timestep(probe, hits[-1]), hits[-1] + 1
    lower = None if unguided else _timestep(probe, below) if below < len(probe.timesteps) else 0.0
    return Exit(
        caption=caption,
        seed=seed,
        timestep=timestep,
        sigma=_sigma(probe, timestep),
        lower=lower,
        monotone=monotone,
        reproduces=() if monotone else tuple(_timestep(probe, i) for i in hits),
    )


def _timestep(probe: Probe, index: int) -> float:
    return float(probe.timesteps[index])


def _sigma(probe: Probe, timestep: float) -> float:
    return float(probe.schedule.sigma(timestep))
