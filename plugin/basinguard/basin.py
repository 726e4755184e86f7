"""Trajectories to exits, widths and curves: how large the basin of attraction around the training images is.

For one (caption, seed), guidance is switched on at some timestep of the sampler's grid; the *exit* is the smallest one
at which the trajectory still ends in a training image. The unguided part before it does not depend on where guidance
begins, so it is run once (`prefix`) and every candidate is a branch off it (`branch`); the exit is found by bisection
(`search`), all rows of a batch at once, each at its own timestep.

Source: the basin and the transition are those of arXiv 2411.16738, section 3; the scalar width, its interval and the
search are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import stats
from .guidance import Constant, gap
from .records import Estimate, Exit
from .sampling import EMPTY, Denoiser, NoiseSchedule, ddim, predict, sample

Judge = Callable[[Tensor, Tensor], Tensor]  # clean latents [B, ...] and their prompts [B] -> reproduced? [B] bool


@dataclass(frozen=True)
class Pairs:
    """(caption, seed) pairs: every caption with every one of its seeds.

    Attributes:
        prompt: index of each pair's prompt, [N].
        seed: each pair's seed, [N].
        noise: each pair's initial latents, [N, ...].
    """

    prompt: Tensor
    seed: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Probe:
    """A model as the measurements see it: denoiser, schedule, grid, guidance scale, and how many rows fit at once.

    Attributes:
        denoise: the model.
        schedule: its noise schedule.
        timesteps: the sampler's grid, descending, [T].
        scale: guidance scale of ordinary CFG.
        chunk: most rows evaluated at once; changes memory, never a result.
    """

    denoise: Denoiser
    schedule: NoiseSchedule
    timesteps: Tensor
    scale: float
    chunk: int = 64


def prefix(probe: Probe, pairs: Pairs, before: float) -> tuple[Tensor, int]:
    """Every state of the trajectories that are never switched, [T + 1, N, ...], and what they cost.

    At scale 0 the prompt plays no part, so pairs of one seed share one trajectory.
    """
    each = torch.arange(len(pairs))
    first, inverse = _unique(pairs.seed) if before == 0 else (each, each)
    states, evals = [], 0
    for rows in first.split(probe.chunk):
        x, prompt = pairs.noise[rows], pairs.prompt[rows]
        steps = list(sample(probe.denoise, x, prompt, probe.schedule, probe.timesteps, Constant(before)))
        states.append(torch.stack([steps[0].x, *(step.x_next for step in steps)]))
        evals += sum(step.unet_evals for step in steps)
    return torch.cat(states, 1)[:, inverse], evals


def _unique(seed: Tensor) -> tuple[Tensor, Tensor]:
    """First row of every distinct seed, and for every row which of them it equals."""
    _, inverse = seed.unique(return_inverse=True)
    first = torch.stack([(inverse == k).nonzero()[0, 0] for k in range(int(inverse.max()) + 1)])
    return first, inverse


def branch(probe: Probe, x: Tensor, prompt: Tensor, index: Tensor) -> tuple[Tensor, int]:
    """Ordinary CFG from grid position `index` of each row to the end: clean latents [N, ...], and the cost.

    Args:
        x: latents of each row at `timesteps[index]`, [N, ...].
        prompt: index of each row's prompt, [N].
        index: where guidance begins, [N]; T means never, and returns `x` itself.
    """
    done, evals = x.clone(), 0
    for rows in torch.arange(len(x)).split(probe.chunk):
        done[rows], cost = _branch_chunk(probe, x[rows], prompt[rows], index[rows])
        evals += cost
    return done, evals


def _branch_chunk(probe: Probe, x: Tensor, prompt: Tensor, index: Tensor) -> tuple[Tensor, int]:
    """Rows that are nearer to the end finish first; the others go on without them."""
    grid = torch.cat([probe.timesteps, torch.tensor([-1])])
    x, index, evals = x.clone(), index.clone(), 0
    rule = Constant(probe.scale)
    while bool((live := index < len(probe.timesteps)).any()):
        rows = live.nonzero().squeeze(1)
        guided, _ = predict(probe.denoise, x[rows], grid[index[rows]], prompt[rows], rule, None)
        _, x[rows] = ddim(x[rows], guided.eps, grid[index[rows]], grid[index[rows] + 1], probe.schedule)
        evals += guided.unet_evals
        index[rows] += 1
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("the model's prediction is not finite; nothing can be measured on this model")
    return x, evals


def search(reproduces: Callable[[Tensor, Tensor], Tensor], first: Tensor, count: int) -> Tensor:
    """Bisects, for every row at once, the largest grid position at which it still reproduces a training image.

    Args:
        reproduces: (rows [K], position of each [K]) -> outcome [K] bool.
        first: outcome at position 0 (guidance from the very start), [N] bool.
        count: number of grid positions; position `count` stands for "guidance never on".

    Returns:
        [N] int64: -1 where even position 0 does not reproduce.
    """
    low = torch.where(first, 0, -1)
    high = torch.full_like(low, count)
    while bool((open_ := first & (high - low > 1)).any()):
        rows = open_.nonzero().squeeze(1)
        middle = (low[rows] + high[rows]) // 2
        hit = reproduces(rows, middle)
        low[rows] = torch.where(hit, middle, low[rows])
        high[rows] = torch.where(hit, high[rows], middle)
    return low


def find_exits(
    probe: Probe, pairs: Pairs, judge: Judge, *, first: Tensor | None = None, before: float = 0.0
) -> tuple[list[Exit], int]:
    """The exit of every pair, on the probe's grid.

    Args:
        probe: the model.
        pairs: which trajectories.
        judge: says which clean latents reproduce their prompt's training image.
        first: outcome of ordinary CFG from the start, [N] bool, where it is already known.
        before: scale before the switch.

    Returns:
        One `Exit` per pair, in order, and the number of network evaluations.
    """
    states, evals = prefix(probe, pairs, before)

    def reproduces(rows: Tensor, index: Tensor) -> Tensor:
        nonlocal evals
        ends, cost = branch(probe, states[index, rows], pairs.prompt[rows], index)
        evals += cost
        return judge(ends, pairs.prompt[rows])

    count = len(probe.timesteps)
    if first is None:
        first = reproduces(torch.arange(len(pairs)), torch.zeros(len(pairs), dtype=torch.long))
    unguided = judge(states[-1], pairs.prompt)
    last = search(reproduces, first, count)
    exits = [
        _exit(probe, int(p), int(s), int(i), bool(u))
        for p, s, i, u in zip(pairs.prompt, pairs.seed, last, unguided, strict=True)
    ]
    return exits, evals


def _exit(probe: Probe, caption: int, seed: int, index: int, unguided: bool) -> Exit:
    """Grid position to record; a trajectory that reproduces with no guidance at all never leaves."""
    if index < 0:
        return Exit(caption=caption, seed=seed, timestep=None, sigma=None, lower=None, monotone=not unguided)
    timestep = float(probe.timesteps[index])
    below = index + 1 < len(probe.timesteps)
    return Exit(
        caption=caption,
        seed=seed,
        timestep=timestep,
        sigma=float(probe.schedule.sigma(timestep)),
        lower=float(probe.timesteps[index + 1]) if below and not unguided else (None if unguided else 0.0),
        monotone=not unguided or not below,
    )


def curve(exits: Sequence[Exit], timesteps: Tensor) -> list[tuple[float, Estimate]]:
    """P(memorized | transition = t) at every grid timestep, ascending, with a band over the whole curve."""
    grid = sorted(float(t) for t in timesteps)
    hits = [[e.timestep is not None and e.timestep <= t for t in grid] for e in exits]
    return list(zip(grid, stats.simultaneous_rates(hits, [e.caption for e in exits]), strict=True))


def width(exits: Sequence[Exit]) -> Estimate:
    """Mean basin width over all pairs, as a share of [0, T]; clusters are the captions."""
    return stats.cluster_bootstrap([e.width for e in exits], [e.caption for e in exits])


def median_exit(exits: Sequence[Exit]) -> Estimate | None:
    """Median exit timestep of the pairs that memorize; None when none does."""
    inside = [(e.timestep, e.caption) for e in exits if e.timestep is not None]
    if not inside:
        return None
    return stats.cluster_bootstrap([t for t, _ in inside], [caption for _, caption in inside], np.median)


def static_transition(exits: Sequence[Exit], timesteps: Tensor, budget: float) -> float | None:
    """The largest grid timestep whose share of memorized pairs is within `budget`; 999 when nothing is memorized.

    A point estimate for following a run; the promise that holds is made by `calibrate`. None when no transition is
    low enough.
    """
    points = [(t, rate.value) for t, rate in curve(exits, timesteps)]
    if points[-1][1] <= budget:
        return 999.0
    allowed = [t for t, share in points if share <= budget]
    return max(allowed, default=None)


def top_gap(probe: Probe, pairs: Pairs) -> tuple[Tensor, int]:
    """Gap of every pair at the noisiest timestep, [N], in epsilon units: the cheapest alarm, two evaluations a pair.

    Source: Wen et al., arXiv 2407.21720, eq. 4, divided by sqrt(numel) and in epsilon space.
    """
    gaps = []
    for rows in torch.arange(len(pairs)).split(probe.chunk):
        t = probe.timesteps[0].expand(len(rows))
        x, prompt = pairs.noise[rows], pairs.prompt[rows]
        u = probe.denoise(x, t, torch.full_like(prompt, EMPTY))
        gaps.append(gap(u, probe.denoise(x, t, prompt)))
    return torch.cat(gaps), 2 * len(pairs)
