"""The dynamic transition point: guidance comes on for each sample when its own gap says that it left the basin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .core import Rule, resolved


@dataclass(frozen=True)
class Past:
    """What a detector remembers of each sample's gaps, all [B].

    Attributes:
        older, last: the last two; NaN before there were two.
        peak: the largest so far.
        trough: the smallest since that peak.
    """

    older: Tensor
    last: Tensor
    peak: Tensor
    trough: Tensor

    def extremes(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Peak and trough with this gap, [B] each; a new peak forgets the trough before it."""
        return torch.maximum(self.peak, gap), torch.where(gap >= self.peak, gap, torch.minimum(self.trough, gap))


@dataclass(frozen=True)
class LocalMinimum:
    """The paper's detector: the gap had fallen and now rises, d[i-2] > d[i-1] < d[i].

    It sees two earlier gaps, so it fires at the third step at the earliest. `depth` is the share of the running peak
    by which the gap must have fallen before a rise counts: 0 is the paper's rule, more ignores ripples.

    Source: arXiv 2411.16738, section 4.3 (DTP).
    """

    depth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.depth < 1:
            raise ValueError(f"LocalMinimum(depth={self.depth}): expected a share of the peak in [0, 1)")

    def fires(self, past: Past, gap: Tensor, timestep: Tensor) -> Tensor:
        """Whether the last gap was a local minimum, deep enough below the peak, [B]; NaN compares False."""
        return (past.older > past.last) & (gap > past.last) & (past.last <= (1 - self.depth) * past.peak)


@dataclass(frozen=True)
class Drop:
    """The robust detector: the gap has fallen well below its running peak, and has turned.

    A ripple on the way is not deep enough, and a minimum that is not strict at three neighbouring points still counts.

    Attributes:
        depth: share of the running peak by which the gap must have fallen, in (0, 1).
        rise: share of the lowest gap since that peak by which it must have risen again; 0 fires on the fall itself.
        latest: timestep at and below which guidance comes on in any case, so that a sample whose gap never falls is
            not left without guidance; None leaves it so.

    Source: the sharp fall of d_t on leaving the basin, arXiv 2411.16738, section 4.3; this criterion is ours.
    """

    depth: float = 0.3
    rise: float = 0.0
    latest: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.depth < 1 or self.rise < 0:
            raise ValueError(f"Drop(depth={self.depth}, rise={self.rise}): expected a depth in (0, 1), rise >= 0")
        if self.latest is not None and not 0 <= self.latest <= 999:
            raise ValueError(f"Drop(latest={self.latest}): expected a training timestep in [0, 999]")

    def fires(self, past: Past, gap: Tensor, timestep: Tensor) -> Tensor:
        """Whether the gap lies deep enough below its peak and has turned, or it is late enough. [B]."""
        peak, trough = past.extremes(gap)
        fallen = (trough <= (1 - self.depth) * peak) & (gap >= (1 + self.rise) * trough)
        return fallen if self.latest is None else fallen | (timestep <= self.latest)


DETECTORS: dict[str, type] = {"local_minimum": LocalMinimum, "drop": Drop}


@dataclass(frozen=True)
class SwitchAfter(Rule):
    """Dynamic transition point: `before` until the detector fires for a sample, `after` from there on.

    `after=None` is the caller's own guidance scale.

    Source: arXiv 2411.16738, section 4.3 (DTP); with a negative `before`, section 4.4 (OG + DTP).
    """

    detector: LocalMinimum | Drop = LocalMinimum()
    before: float = 0.0
    after: float | None = 7.5

    reads_gap = True

    def init(self, batch: int) -> Tensor:
        """Columns: the last two gaps, the running peak, the lowest gap since, whether the detector fired. [B, 5]."""
        return torch.tensor([float("nan"), float("nan"), 0.0, float("inf"), 0.0]).repeat(batch, 1)

    def scale(self, timestep: Tensor, gap: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """`after` for every sample for which the detector has fired."""
        if gap is None:
            raise ValueError("SwitchAfter needs the gap, but only one branch was evaluated")
        older, last, peak, trough, fired = state.to(gap.device).unbind(1)
        past = Past(older, last, peak, trough)
        on = fired.bool() | self.detector.fires(past, gap, timestep.to(gap.device))
        state = torch.stack([last, gap, *past.extremes(gap), on.float()], 1)
        return torch.where(on, resolved(self.after), self.before).float(), state
