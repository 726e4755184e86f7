"""The order of training images: fixed by seed and epoch, and resumed where a checkpoint left it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..core.seeds import stream

MARK = 2**48  # added to the key of an image that is to be treated otherwise; far above any epoch * count + index


class EpochOrder(Sampler[int]):
    """A new permutation each epoch, from (seed, epoch) alone.

    Yields epoch * count + index, so that a dataset can draw its augmentation from the same number whichever worker
    it runs in; MARK is added for images that are `marked`.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.epoch = self.skip = 0
        self.marked: frozenset[int] = frozenset()  # whose key MARK sets apart
        self.shares: dict[int, float] = {}  # by index: share of its turns that it keeps; others take those it loses

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        if self.shares:
            order = self._with_turns_given_away(order, generator)
        order, self.skip = order[self.skip :], 0
        return iter([MARK * (at in self.marked) + at + self.epoch * self.count for at in order.tolist()])

    def _with_turns_given_away(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The order with turns of resting images given to others, drawn at random; as long as before."""
        share = torch.tensor([self.shares.get(index, 1.0) for index in range(self.count)])
        awake = (share == 1).nonzero().squeeze(1)
        if not len(awake):
            return order  # nobody is there to take a turn
        skipped = torch.rand(self.count, generator=generator) >= share[order]
        drawn = awake[torch.randint(len(awake), (self.count,), generator=generator)]
        return torch.where(skipped, drawn, order)


class ResumableLoader(DataLoader):
    """A DataLoader over `EpochOrder` that goes on in the middle of an epoch when Lightning resumes there."""

    trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the current epoch have been trained on; prefetched ones do not count."""
        if self.trainer is None:
            return {"processed": 0}
        return {"processed": self.trainer.fit_loop.epoch_loop.batch_progress.current.processed % len(self)}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Skips what has been trained on, once."""
        if isinstance(self.sampler, EpochOrder):
            self.sampler.skip = state["processed"] * (self.batch_size or 1)
        else:  # batches of buckets
            sampler: Any = self.batch_sampler
            sampler.skip = state["processed"]
