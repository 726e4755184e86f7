"""Delayed guidance as its authors' scripts intend it: a finer grid after the transition, scale 1 before a dynamic one.

Source: SonyResearch/mitigating_memorization at c6e813c, for Jain et al., arXiv 2411.16738. At the transition the
scripts change from 50 to 200 sampling steps and go on from the nearest timestep (called here: a grid four times as
fine). Before it, the static script uses scale 0 and the dynamic one scale 1, though the paper says "without CFG"; the
dynamic one looks for the first minimum of the norm of the *raw* prediction's difference.

As released, the static script enters its refinement again and again and never ends for the transition in its README;
the dynamic script stops with a NameError; opposite guidance changes its sign at every step. None of that is intended,
so none of it is here. The scripts sample by DPM-Solver++, here it is DDIM, in this package's own loop.

Cost: every step after the transition becomes four.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.sampling import EMPTY, Denoiser, final, sample
from ..guidance.core import Constant
from ..guidance.dynamic import LocalMinimum, Past
from .base import Batch, Bench, Method

FINER = 4
CODE = "SonyResearch/mitigating_memorization c6e813c, for arXiv 2411.16738"


class Trajectories:
    """A batch on its way: who has switched, and where."""

    def __init__(self, bench: Bench, batch: Batch, before: float) -> None:
        self.bench, self.before = bench, before
        self.denoise: Denoiser = bench.model.denoiser(list(batch.prompts))
        self.schedule = bench.model.schedule
        self.x = bench.noise(batch)
        self.rows = torch.arange(len(batch))
        self.ends = torch.empty_like(self.x)

    def refine(self, which: Tensor, now: int) -> None:
        """Takes the rows `which` from timestep `now` to the end on the finer grid, under ordinary CFG."""
        fine = self.schedule.grid(FINER * self.bench.timesteps)
        rest = fine[fine <= now]
        steps = sample(self.denoise, self.x[which], self.rows[which], self.schedule, rest, Constant(self.bench.scale))
        self.ends[self.rows[which]] = final(steps)
        self.x, self.rows = self.x[~which], self.rows[~which]

    def gaps(self, now: int) -> tuple[Tensor, Tensor]:
        """The conditional prediction and the norm of the raw difference at `now`, of rows that have not switched."""
        t = torch.full((len(self.rows),), now)
        u = self.denoise(self.x, t, torch.full_like(self.rows, EMPTY))
        c = self.denoise(self.x, t, self.rows)
        raw = 1.0 if self.bench.model.prediction_type == "epsilon" else float(self.schedule.signal(t[0]))
        return c, (c - u).flatten(1).norm(dim=1) / raw

    def step(self, eps: Tensor, now: int, then: int) -> None:
        """One DDIM step of the rows that have not switched; Song et al., arXiv 2010.02502, eq. 12 with sigma = 0."""
        signal, noise = (
            level(torch.tensor([now, then])).tolist() for level in (self.schedule.signal, self.schedule.noise)
        )
        clean = (self.x - noise[0] * eps) / signal[0]
        self.x = signal[1] * clean + noise[1] * eps


def _stp(bench: Bench, batch: Batch, transition: float) -> Tensor:
    way = Trajectories(bench, batch, before=0.0)
    grid = [*way.schedule.grid(bench.timesteps).tolist(), -1]
    for now, then in pairwise(grid):
        if now <= transition:
            way.refine(torch.ones_like(way.rows, dtype=torch.bool), now)
            break
        t = torch.full((len(way.rows),), now)
        way.step(way.denoise(way.x, t, torch.full_like(way.rows, EMPTY)), now, then)
    return way.ends


def _dtp(bench: Bench, batch: Batch, depth: float) -> Tensor:
    way, detector = Trajectories(bench, batch, before=1.0), LocalMinimum(depth)
    grid = [*way.schedule.grid(bench.timesteps).tolist(), -1]
    older = last = torch.full((len(batch),), float("nan"))
    peak = torch.zeros(len(batch))
    for now, then in pairwise(grid):
        eps, gap = way.gaps(now)
        peak = torch.maximum(peak, gap)
        fired = detector.fires(Past(older, last, peak, peak), gap, torch.full_like(gap, now))
        stay = ~fired
        if bool(fired.any()):
            way.refine(fired, now)
        if not len(way.rows):
            return way.ends
        older, last, peak = last[stay], gap[stay], peak[stay]
        way.step(eps[stay], now, then)
    way.ends[way.rows] = way.x
    return way.ends


STP_RELEASED = Method("stp-released", CODE, "transition, timestep", (950.0, 850.0, 750.0, 650.0, 500.0), 650.0, _stp)
DTP_RELEASED = Method(
    "dtp-released",
    CODE,
    "depth a minimum needs, share of the peak; 0 is the code's",
    (0.0, 0.1, 0.2, 0.3, 0.5),
    0.0,
    _dtp,
)
