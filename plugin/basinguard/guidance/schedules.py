"""Guidance that varies along the trajectory, whoever the prompt is: rules of other papers, for comparison.

The schedules differ only in a shape over t / T; the table `SHAPES` holds them. A checkpoint ships with `core.SwitchAt`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .core import Rule, resolved

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda noise: 2 * (1 - noise),
    "inverse_linear": lambda noise: 2 * noise,
    "cosine": lambda noise: 1 + torch.cos(torch.pi * noise),
    "sine": lambda noise: 1 + torch.sin(torch.pi * (noise - 0.5)),
    "v": lambda noise: 2 * (2 * noise - 1).abs(),
    "a": lambda noise: 2 * (1 - (2 * noise - 1).abs()),
}
"""Shape over t / T in [0, 1] (1 = noisy); each has mean 1, so that all spend the same guidance in total."""


@dataclass(frozen=True)
class Schedule(Rule):
    """Scale 1 + (after - 1) * shape(t / T): the named shape with the mean of constant guidance at `after`.

    `after=None` is the caller's own guidance scale.

    Source: Wang et al., arXiv 2404.13040, section 4 (heuristic schedulers, normalised to the area of the static one).
    Its weight omega multiplies cond - uncond on top of the conditional prediction, so omega = scale - 1.

    Example:
        >>> Schedule("linear", after=5.0).scale(torch.tensor([999.0, 499.5, 0.0]), None, None)[0]
        tensor([1., 5., 9.])
    """

    shape: str
    after: float | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"Schedule({self.shape!r}): unknown shape; known: {', '.join(SHAPES)}")

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """The shape at `timestep`."""
        noise = (timestep.float() / 999).clamp(0, 1)
        return 1 + (resolved(self.after) - 1) * SHAPES[self.shape](noise), None


@dataclass(frozen=True)
class Interval(Rule):
    """`after` for timesteps in (low, high], the conditional prediction (scale 1) outside.

    The paper names noise levels: sigma in (0.28, 5.42] for SDXL; `NoiseSchedule.timestep(sigma)` translates.

    Source: Kynkaanniemi et al., arXiv 2404.07724, eq. 5.

    Example:
        >>> Interval(100, 800, after=7.5).scale(torch.tensor([900.0, 800.0, 100.0]), None, None)[0]
        tensor([1.0000, 7.5000, 1.0000])
    """

    low: float
    high: float
    after: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1000:
            raise ValueError(f"Interval({self.low}, {self.high}): expected timesteps with 0 <= low < high <= 1000")

    def scale(self, timestep: Tensor, gap: Tensor | None, state: None) -> tuple[Tensor, None]:
        """`after` inside the interval, 1 outside."""
        inside = (timestep > self.low) & (timestep <= self.high)
        return torch.where(inside, resolved(self.after), 1.0).float(), None
