"""The trained weights of probed epochs on disk: what the search over epochs needs, bounded, whole files only.

Adapters are stored as they are; of a full fine-tune the difference to the base model in half precision, which is a few
thousandths of the difference away from it and half as large as the weights. A middling epoch often keeps more of what
was taught than the last at the same risk, so the epochs that stay are spread over the run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.files import whole_file

NAME = re.compile(r"epoch-(\d{5})-update-(\d{8})\.safetensors")  # no other file in the folder is ever touched
STORED = torch.float16  # of differences: 11 bits, where bfloat16 has 8


@dataclass(frozen=True, order=True)
class StoredEpoch:
    """An epoch on disk."""

    train_step: int
    epoch: int
    path: Path


class EpochArchive:
    """Keeps at most so many epochs in a folder.

    Args:
        folder: made when the first epoch is stored; files that were not written here stay untouched.
        most: how many epochs stay.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most

    def stored(self) -> list[StoredEpoch]:
        """What is there, oldest first."""
        if not self.folder.is_dir():
            return []
        names = ((path, NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(StoredEpoch(int(match[2]), int(match[1]), path) for path, match in names if match)

    def store(
        self,
        epoch: int,
        train_step: int,
        weights: Mapping[str, Tensor],
        base: Mapping[str, Tensor] | None,
        protected: Collection[int] = (),
    ) -> None:
        """Writes an epoch, whole or not at all, and drops the one that is missed least where there are too many.

        Args:
            epoch, train_step: whose weights they are.
            weights: trained parameters by name.
            base: the same of the base model; None where they are stored as they are.
            protected: epochs that stay whatever happens.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = self.folder / f"epoch-{epoch:05}-update-{train_step:08}.safetensors"
        stored = {k: (w if base is None else weight_change(w, base[k])).contiguous() for k, w in weights.items()}
        with whole_file(path, overwrite=True) as partial:
            save_file(stored, partial)
        while len(self.stored()) > self.most:
            redundant(self.stored(), protected).path.unlink()

    def weights(self, epoch: int, base: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Trained parameters by name, as they were stored.

        Raises:
            KeyError: the epoch is not here.
        """
        path = {entry.epoch: entry.path for entry in self.stored()}[epoch]
        stored = load_file(path)
        if base is None:
            return stored
        return {key: (base[key].float() + change.float()).to(base[key].dtype) for key, change in stored.items()}

    def forget_after(self, train_step: int) -> None:
        """Drops the epochs of a run that was taken up before they came."""
        for entry in self.stored():
            if entry.train_step > train_step:
                entry.path.unlink()


def weight_change(weight: Tensor, base: Tensor) -> Tensor:
    """What training changed, in half precision."""
    return (weight.float() - base.to(weight.device).float()).to(STORED)


def redundant(stored: list[StoredEpoch], protected: Collection[int]) -> StoredEpoch:
    """The epoch whose neighbours lie nearest together, in square roots of updates; never the newest.

    Example:
        >>> steps = [StoredEpoch(100 * k, k, Path()) for k in (1, 2, 3, 4, 5)]
        >>> redundant(steps, ()).epoch, redundant(steps, (4,)).epoch
        (4, 3)
    """
    roots = [0.0, *(entry.train_step**0.5 for entry in stored)]
    free = [k for k in range(len(stored) - 1) if stored[k].epoch not in protected] or range(len(stored) - 1)
    return stored[min(free, key=lambda k: roots[k + 2] - roots[k])]


def stored_bytes(weights: Mapping[str, Tensor], *, differences: bool) -> int:
    """Size of one epoch on disk."""
    return sum(w.numel() * (STORED.itemsize if differences else w.element_size()) for w in weights.values())
