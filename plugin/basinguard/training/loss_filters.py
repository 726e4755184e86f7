"""Which examples of a batch a training step leaves out: rules that other papers found to slow memorization.

A filter is asked for the weight of each row's loss; `FineTune.filter` holds it. None is in place unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BINS = 20  # of 50 timesteps each: a small set visits every one of them in a few dozen updates


class LossFilter:
    """Says which rows count."""

    def __call__(self, errors: Tensor, timesteps: Tensor, gaps: Callable[[], Tensor]) -> Tensor:
        """Weights [B], 0 or 1.

        Args:
            errors: mean squared error of each row, [B], detached.
            timesteps: training timesteps, [B].
            gaps: root-mean-square gap of each row in epsilon space, [B]; costs one evaluation of every row.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What it has learnt, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""


class LowLoss(LossFilter):
    """Leaves out rows whose loss is far below what is usual at their timestep: those are the memorized ones.

    Args:
        ratio: a row is left out when its loss times `ratio` is below the mean at its timestep, above 1; 2 in the
            authors' code.
        decay: of the running means; 0.8 in the authors' code.

    Source: anti-gradient control of IET-AGC, Liu et al., arXiv 2407.15328, section 3.3. Its means are kept for each of
    1000 timesteps; here for 20 bins, because small sets see too few examples. Its ensemble is not part of this.
    """

    def __init__(self, ratio: float = 2.0, decay: float = 0.8) -> None:
        if ratio <= 1 or not 0 <= decay < 1:
            raise ValueError(f"LowLoss(ratio={ratio}, decay={decay}): expected above 1, and 0 to below 1")
        self.ratio, self.decay, self.means = ratio, decay, torch.zeros(BINS)

    def __call__(self, errors: Tensor, timesteps: Tensor, gaps: Callable[[], Tensor]) -> Tensor:
        """Weights [B], see `LossFilter`."""
        rows = (timesteps.cpu() * BINS // 1000).long().clamp(0, BINS - 1)
        losses = errors.detach().float().cpu()
        weights = (losses * self.ratio >= self.means[rows]).float()
        for row, error in zip(rows.tolist(), losses.tolist(), strict=True):
            self.means[row] = self.decay * self.means[row] + (1 - self.decay) * error
        return weights.to(errors.device)

    def state_dict(self) -> dict[str, Any]:
        """Its running means."""
        return {"means": self.means.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self.means = state["means"].clone()


class LargeGap(LossFilter):
    """Leaves out rows whose caption pulls too hard: memorized ones pull hardest.

    Args:
        threshold: root-mean-square gap in epsilon space above which a row is left out. The authors' 2, a Euclidean norm
            over 4 x 64 x 64 latents, is 2 / 128 = 0.0156 here.

    Source: training-time mitigation of Wen et al., arXiv 2407.21720, section 5.2. Costs one more evaluation of every
    row, without gradient.
    """

    def __init__(self, threshold: float = 2 / 128) -> None:
        if threshold <= 0:
            raise ValueError(f"LargeGap(threshold={threshold}): expected above 0")
        self.threshold = threshold

    def __call__(self, errors: Tensor, timesteps: Tensor, gaps: Callable[[], Tensor]) -> Tensor:
        """Weights [B], see `LossFilter`."""
        return (gaps() <= self.threshold).float()


class Both(LossFilter):
    """Counts a row that every filter counts."""

    def __init__(self, filters: list[LossFilter]) -> None:
        self.filters = filters

    def __call__(self, errors: Tensor, timesteps: Tensor, gaps: Callable[[], Tensor]) -> Tensor:
        """Weights [B], see `LossFilter`."""
        return torch.stack([one(errors, timesteps, gaps) for one in self.filters]).prod(0)

    def state_dict(self) -> dict[str, Any]:
        """Its running means."""
        return {str(k): one.state_dict() for k, one in enumerate(self.filters)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        for k, one in enumerate(self.filters):
            one.load_state_dict(state[str(k)])


def filtered_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Mean of the rows that count, a scalar; 0, with a gradient of 0, where none does."""
    return (errors * weights).sum() / weights.sum().clamp(min=1)
