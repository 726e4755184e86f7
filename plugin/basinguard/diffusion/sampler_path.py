"""A sampler on a grid, as a linear recurrence that a branch can leave at any place; see `solvers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .solvers import SCALED_START, SOLVERS

FAINT = 1e-3  # a signal below this is lost in float32 sums


@dataclass(frozen=True)
class SamplerPath:
    """A sampler on one grid.

    Attributes:
        nodes: timestep of every evaluation, descending, [K]; a sampler that evaluates twice names it twice.
        first: the evaluation at which each grid timestep is first reached, and K for the end, [N + 1].
        signal, noise: factors at every evaluation, [K], float64.
        update: the matrices, [K, S, S + 1], float64; S - 1 is the length of the memory.
        start: what unit noise is multiplied by to be the first x.
    """

    nodes: Tensor
    first: Tensor
    signal: Tensor
    noise: Tensor
    update: Tensor
    start: float

    @property
    def slots(self) -> int:
        """How many latents a state holds: x and the memory."""
        return self.update.shape[1]

    def begin(self, noise: Tensor) -> Tensor:
        """The first state [B, S * C, ...] from unit noise [B, C, ...]; the memory is empty.

        In float64 where the path begins with next to no signal, as pipelines of flows do.
        """
        x = noise if self.start == 1 else noise * self.start
        x = x.double() if self.signal[0] < FAINT else x
        return torch.cat([x, *[torch.zeros_like(x)] * (self.slots - 1)], 1)

    def latents(self, state: Tensor) -> Tensor:
        """x of each state, [B, C, ...]."""
        return state[:, : state.shape[1] // self.slots]

    def denoised(self, state: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """The clean latents that eps predicts at evaluation `index` [B] of each state, [B, C, ...]."""
        x = self.latents(state)
        signal, noise = self.signal[index], self.noise[index]
        return (x - _rows(noise, x) * eps) / _rows(signal, x)

    def advance(self, state: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """The next state of each row after evaluation `index` [B], [B, S * C, ...]."""
        parts = torch.cat([state, eps], 1).reshape(len(state), self.slots + 1, -1)
        return (self.update[index].to(parts) @ parts).reshape(state.shape)


def make_sampler_path(solver: str, timesteps: Tensor, signal: Sequence[float], noise: Sequence[float]) -> SamplerPath:
    """A sampler on a grid.

    Args:
        solver: one of `SOLVERS`.
        timesteps: the grid, descending, [N].
        signal, noise: factors at every grid timestep and, last, at the end of sampling; N + 1 numbers each.

    Raises:
        ValueError: a sampler that cannot be branched.
    """
    if solver not in SOLVERS:
        raise ValueError(
            f"sampler {solver!r} cannot be branched: a branch needs a deterministic sampler whose whole history is "
            f"known; accepted: {', '.join(SOLVERS)}"
        )
    a, s = [float(v) for v in signal], [float(v) for v in noise]
    position, matrices = SOLVERS[solver](a, s)
    where = torch.tensor(position)
    return SamplerPath(
        nodes=timesteps[where],
        first=torch.tensor([position.index(i) for i in range(len(timesteps))] + [len(position)]),
        signal=torch.tensor(a, dtype=torch.float64)[where],
        noise=torch.tensor(s, dtype=torch.float64)[where],
        update=torch.tensor(matrices, dtype=torch.float64),
        start=s[0] if solver in SCALED_START and s[0] ** 2 + a[0] ** 2 > 0.999 else 1.0,
    )


def _rows(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(like).reshape(-1, *[1] * (like.ndim - 1))
