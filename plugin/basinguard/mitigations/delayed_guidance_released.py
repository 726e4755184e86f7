"""Jain et al., delayed guidance as their scripts intend it: a finer grid afterwards, scale 1 before a dynamic switch.

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

from ..diffusion.sampling import EMPTY, Denoiser, final, sample_trajectory
from ..guidance.core import Constant, epsilon_factor
from ..guidance.dynamic import LocalMinimum, Past
from .base import Mitigation
from .delayed_guidance import TRANSITIONS
from .testbed import Batch, Testbed

FINER = 4
CODE = "SonyResearch/mitigating_memorization c6e813c, for arXiv 2411.16738"


class RefinedTrajectories:
    """A batch on its trajectories: who has switched, and where."""

    def __init__(self, testbed: Testbed, batch: Batch, before: float) -> None:
        self.testbed, self.before = testbed, before
        self.denoise: Denoiser = testbed.model.denoiser(list(batch.prompts))
        self.schedule = testbed.model.schedule
        self.x = testbed.noise(batch)
        self.rows = torch.arange(len(batch))
        self.ends = torch.empty_like(self.x)

    def refine(self, which: Tensor, now: int) -> None:
        """Takes the rows `which` from timestep `now` to the end on the finer grid, under plain CFG."""
        fine = self.schedule.grid(FINER * self.testbed.timesteps)
        rest = fine[fine <= now]
        steps = sample_trajectory(
            self.denoise, self.x[which], self.rows[which], self.schedule, rest, Constant(self.testbed.scale)
        )
        self.ends[self.rows[which]] = final(steps)
        self.x, self.rows = self.x[~which], self.rows[~which]

    def prediction_and_gap(self, now: int) -> tuple[Tensor, Tensor]:
        """The conditional prediction and the norm of the raw difference at `now`, of rows that have not switched."""
        t = torch.full((len(self.rows),), now)
        u = self.denoise(self.x, t, torch.full_like(self.rows, EMPTY))
        c = self.denoise(self.x, t, self.rows)
        return c, (c - u).flatten(1).norm(dim=1) / epsilon_factor(self.testbed.pipe.scheduler)(now)

    def ddim_update(self, eps: Tensor, now: int, then: int) -> None:
        """DDIM on the rows that have not switched; Song et al., arXiv 2010.02502, eq. 12 with sigma = 0."""
        signal, noise = (
            level(torch.tensor([now, then])).tolist() for level in (self.schedule.signal, self.schedule.noise)
        )
        clean = (self.x - noise[0] * eps) / signal[0]
        self.x = signal[1] * clean + noise[1] * eps


def _stp(testbed: Testbed, batch: Batch, transition: float) -> Tensor:
    trajectories = RefinedTrajectories(testbed, batch, before=0.0)
    grid = [*trajectories.schedule.grid(testbed.timesteps).tolist(), -1]
    for now, then in pairwise(grid):
        if now <= transition:
            trajectories.refine(torch.ones_like(trajectories.rows, dtype=torch.bool), now)
            break
        t = torch.full((len(trajectories.rows),), now)
        eps = trajectories.denoise(trajectories.x, t, torch.full_like(trajectories.rows, EMPTY))
        trajectories.ddim_update(eps, now, then)
    return trajectories.ends


def _dtp(testbed: Testbed, batch: Batch, depth: float) -> Tensor:
    trajectories, detector = RefinedTrajectories(testbed, batch, before=1.0), LocalMinimum(depth)
    grid = [*trajectories.schedule.grid(testbed.timesteps).tolist(), -1]
    older = last = torch.full((len(batch),), float("nan"))
    peak = torch.zeros(len(batch))
    for now, then in pairwise(grid):
        eps, gap = trajectories.prediction_and_gap(now)
        peak = torch.maximum(peak, gap)
        fired = detector.fires(Past(older, last, peak, peak), gap, torch.full_like(gap, now))
        stay = ~fired
        if bool(fired.any()):
            trajectories.refine(fired, now)
        if not len(trajectories.rows):
            return trajectories.ends
        older, last, peak = last[stay], gap[stay], peak[stay]
        trajectories.ddim_update(eps[stay], now, then)
    trajectories.ends[trajectories.rows] = trajectories.x
    return trajectories.ends


STP_RELEASED = Mitigation("stp-released", CODE, "transition, timestep", TRANSITIONS, 650.0, _stp)
DTP_RELEASED = Mitigation(
    "dtp-released",
    CODE,
    "depth a minimum needs, share of the peak; 0 is the code's",
    (0.0, 0.1, 0.2, 0.3, 0.5),
    0.0,
    _dtp,
)
