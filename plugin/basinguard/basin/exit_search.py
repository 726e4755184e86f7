"""Exits of (caption, seed) pairs: one shared unguided trunk, few short branches, and a check of the assumed order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..core.report_parts import Exit
from ..diffusion.noise_schedule import rule_timesteps
from .early_decision import Anchors, ExitDecider, Limits, learn
from .ordered_search import last_position
from .plain_run import PlainRun, run_plain
from .trajectories import GuidedModel, Pairs, Trunk, run_branch, run_trunk

CopyTest = Callable[[Tensor, Tensor], Tensor]  # clean latents [B, ...] and their prompts [B] -> reproduced? [B] bool


class ExitSearch:
    """Looks for the exit of every pair, on the model's grid.

    Args:
        model: what is measured.
        pairs: which trajectories.
        is_copy: says which clean latents reproduce their prompt's training image.
        before: scale before the switch.
        anchors: latents of the training images. With them, every search starts from a guess, branches stop as soon as
            the predicted clean latents decide, and only ends that they do not decide are given to `is_copy`.
        plain: the pairs under plain CFG, where they were run already; with the trail, where there are anchors.
        reproduced: whether each of those reproduces its image, [N] bool, where it is known already.
    """

    def __init__(
        self,
        model: GuidedModel,
        pairs: Pairs,
        is_copy: CopyTest,
        *,
        before: float = 0.0,
        anchors: Anchors | None = None,
        plain: PlainRun | None = None,
        reproduced: Tensor | None = None,
    ) -> None:
        self.model, self.pairs, self.is_copy, self.before, self.anchors = model, pairs, is_copy, before, anchors
        self.positions = len(model.timesteps)
        if plain is not None:
            self.plain = plain
        if reproduced is not None:
            self.reproduced = reproduced

    @cached_property
    def trunk(self) -> Trunk:
        """The trajectories that are never switched."""
        return run_trunk(self.model, self.pairs, self.before)

    @cached_property
    def plain(self) -> PlainRun:
        """The pairs under plain CFG."""
        return run_plain(self.model, self.pairs, self.anchors)

    @cached_property
    def reproduced(self) -> Tensor:
        """Whether plain CFG reproduces each pair's image, [N] bool."""
        return self.is_copy(self.plain.ends, self.pairs.prompt)

    @cached_property
    def unguided(self) -> Tensor:
        """Whether the trajectory that is never switched reproduces it, [N] bool."""
        return self.is_copy(self._unguided_ends, self.pairs.prompt)

    @property
    def _unguided_ends(self) -> Tensor:
        return self.model.path.latents(self.trunk.states[-1])[self.trunk.row]

    @cached_property
    def limits(self) -> Limits | None:
        """What decides a branch early, read off the trajectories that were run to the end."""
        if self.anchors is None or self.plain.trail is None:
            return None
        away = self.anchors.distance(self._unguided_ends, self.pairs.prompt)[~self.unguided]
        return learn(self.plain.trail, self.reproduced, away)

    def exits(self, *, order_checks: int = 0, resolution: int = 1) -> list[Exit]:
        """One exit for each pair, in order.

        Args:
            order_checks: candidates of each pair that are tried beyond the search, to see whether its outcomes are
                ordered. A pair whose outcomes are not is tried at every candidate.
            resolution: grid positions that an exit may be left open by.

        Raises:
            FloatingPointError: the model returned a value that is not finite.
        """
        last, random = self._last_positions(resolution), torch.Generator().manual_seed(0)
        unordered = self.unguided & (last < self.positions - 1)  # reproduced without guidance, not with late guidance
        for number in range(order_checks):
            unordered |= self._contradicts(last, self._candidate(last, number, random), resolution)
        swept = self._sweep(unordered.nonzero().squeeze(1))
        return [
            self._swept_exit(row, swept[row]) if row in swept else self._exit(row, int(last[row]), resolution)
            for row in range(len(self.pairs))
        ]

    def guess(self) -> Tensor | None:
        """Where the conditional prediction, read along the unguided trajectory, stops pointing to the image, [N].

        One evaluation for each halving; the closed-form exit of the toy is this very condition.
        """
        limits, anchors, path = self.limits, self.anchors, self.model.path
        if limits is None or anchors is None or self.before != 0:
            return None

        def points_to_image(rows: Tensor, index: Tensor) -> Tensor:
            state, node, prompt = self.trunk.at(rows, index), path.first[index], self.pairs.prompt[rows]
            eps = self.model.evaluate(path.latents(state), path.nodes[node], prompt)
            return anchors.distance(path.denoised(state, eps, node), prompt) <= limits.middle

        return last_position(points_to_image, self.reproduced, self.positions).clamp(min=1)

    def _reproduces(self, rows: Tensor, index: Tensor, early: bool = True) -> Tensor:
        """Outcome of guidance from grid position `index` of each row, [len(rows)] bool."""
        prompt, decider = self.pairs.prompt[rows], None
        if early and self.limits is not None and self.anchors is not None:
            decider = ExitDecider(self.limits, self.anchors, prompt)
        ends = run_branch(self.model, self.trunk.at(rows, index), prompt, index, decider)
        if decider is None:
            return self.is_copy(ends, prompt)
        outcome, undecided = decider.outcome == 1, decider.outcome < 0
        if bool(undecided.any()):
            outcome[undecided] = self.is_copy(ends[undecided], prompt[undecided])
        return outcome

    def _last_positions(self, resolution: int) -> Tensor:
        """Last grid position of every pair that reproduces, [N].

        Guesses err to one side, by how much the first seed of every caption shows before the others are searched.
        """
        first, guess = self.reproduced, self.guess()
        last, shift = torch.full_like(self.pairs.prompt, -1), 0
        pilots = torch.ones_like(first) if guess is None else _first_seeds(self.pairs)
        for part in (pilots.nonzero().squeeze(1), (~pilots).nonzero().squeeze(1)):
            begin = None if guess is None else guess[part] + shift
            outcome = partial(self._outcome_of, part)
            last[part] = last_position(outcome, first[part], self.positions, guess=begin, resolution=resolution)
            if guess is not None and bool(first[part].any()):
                shift = int((last - guess)[part][first[part]].median())
        return last

    def _outcome_of(self, part: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        return self._reproduces(part[rows], index)

    def _candidate(self, last: Tensor, number: int, random: torch.Generator) -> Tensor:
        """What a check tries: first the middle of the exits, then candidates that are drawn evenly, [N].

        A pair that plain CFG does not reproduce is likeliest to be reproduced by guidance that begins where others
        leave.
        """
        inside = last[last > 0]
        if number == 0 and len(inside):
            return torch.full_like(last, int(inside.median()))
        return torch.randint(1, self.positions, last.shape, generator=random) if self.positions > 1 else 0 * last

    def _contradicts(self, last: Tensor, at: Tensor, resolution: int) -> Tensor:
        """Tries the candidate `at` of every pair and compares it with the order, [N] bool."""
        left_open = (at > last) & (at < last + resolution) & (last >= 0)  # by the search: no contradiction
        return (self._reproduces(torch.arange(len(last)), at) != (at <= last)) & ~left_open

    def _sweep(self, rows: Tensor) -> dict[int, Tensor]:
        """Outcome at every grid position of some rows, run to the end and judged: row -> [T] bool."""
        if not len(rows):
            return {}
        grid = range(self.positions)
        outcomes = [self._reproduces(rows, torch.full_like(rows, index), early=False) for index in grid]
        return dict(zip(rows.tolist(), torch.stack(outcomes, 1), strict=True))

    def _exit(self, row: int, index: int, resolution: int = 1, **order: Any) -> Exit:
        """Exit of a pair that reproduces down to grid position `index` and no further, or (unguided) even below it."""
        pair: dict[str, Any] = {"caption": int(self.pairs.prompt[row]), "seed": int(self.pairs.seed[row])}
        if index < 0:
            return Exit(**pair, timestep=None, sigma=None, lower=None, **order)
        grid, below = rule_timesteps(self.model.timesteps), index + resolution
        lower = None if bool(self.unguided[row]) else float(grid[below]) if below < self.positions else 0.0
        sigma = float(self.model.schedule.sigma(float(grid[index])))
        return Exit(**pair, timestep=float(grid[index]), sigma=sigma, lower=lower, **order)

    def _swept_exit(self, row: int, outcomes: Tensor) -> Exit:
        """Exit of a pair that was tried everywhere; one that reproduces with no guidance at all never leaves."""
        hits = outcomes.nonzero().squeeze(1).tolist()
        falls = torch.cat([outcomes, self.unguided[row : row + 1]]).int().diff()
        monotone = not bool((falls > 0).any())
        reproduces = () if monotone else tuple(float(rule_timesteps(self.model.timesteps)[i]) for i in hits)
        return self._exit(row, hits[-1] if hits else -1, monotone=monotone, reproduces=reproduces)


def _first_seeds(pairs: Pairs) -> Tensor:
    """Which pairs have the smallest seed of their caption, [N] bool."""
    same = pairs.prompt[:, None] == pairs.prompt
    return ~(same & (pairs.seed < pairs.seed[:, None])).any(1)
