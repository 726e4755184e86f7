"""The order of training images: fixed by seed and epoch, and resumed where a checkpoint left it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Sampler

from .seeds import stream


class EpochOrder(Sampler[int]):
    """A new permutation each epoch, from (seed, epoch) alone.

    Yields epoch * count + index, so that a dataset can draw its augmentation from the same number whichever worker
    it runs in.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(stream(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)[self.skip :]
        self.skip = 0
        return iter((order + self.epoch * self.count).tolist())


class ResumableLoader(DataLoader):
    """A DataLoader over `EpochOrder` that goes on in the middle of an epoch when Lightning resumes there."""

    trainer: Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the current epoch have been trained on; prefetched ones do not count."""
        if self.trainer is None:
            return {"processed": 0}
        return {"processed": self.trainer.fit_loop.epoch_loop.batch_progress.current.processed % len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Skips what has been trained on, once."""
        if isinstance(self.sampler, EpochOrder):
            self.sampler.skip = state["processed"] * (self.batch_size or 1)
        elif hasattr(self.batch_sampler, "skip"):
            self.batch_sampler.skip = state["processed"]
