"""The epochs of a run that the search at its end chooses among: on disk where it will export, else the ones to ship."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.report import Report
from ..pipelines.loading import load_pipeline
from .best_weights import BestWeights
from .epoch_archive import EpochArchive, stored_bytes
from .epoch_series import EpochSeries, WeightsSource, has_adapter, origin_weights
from .isolation import trained_weights
from .protocols import TrainedModule


class RunEpochs:
    """What a guarded run keeps of its epochs.

    Args:
        best_weights: the epochs to ship, in memory and in checkpoints.

    Attributes:
        archive: more of them on disk; None where nothing will be exported.
    """

    def __init__(self, best_weights: BestWeights) -> None:
        self.best_weights = best_weights
        self.archive: EpochArchive | None = None
        self._origin: dict[str, Tensor] | None = None  # the base's values of what a full fine-tune trains

    def archive_in(self, out: Path, most: int) -> None:
        """Keeps up to so many epochs beside a directory that will be exported to."""
        self.archive = EpochArchive(out.with_name(f"{out.name}-epochs"), most)

    def forget_after(self, train_step: int) -> None:
        """Drops what an interrupted run stored after the update at which it is taken up."""
        if self.archive is not None:
            self.archive.forget_after(train_step)

    def disk_note(self, module: TrainedModule) -> str:
        """What will be taken on disk, in words; "" where nothing is."""
        if self.archive is None:
            return ""
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        each = stored_bytes(parameters, differences=not has_adapter(module)) / 1e6
        return (
            f"basinguard keeps up to {self.archive.most} epochs of {each:.3g} MB each in {self.archive.folder}: the "
            "calibration at the end chooses among them"
        )

    def keep(self, module: TrainedModule, history: Sequence[Report]) -> None:
        """Stores the epoch of the newest report.

        Raises:
            OSError: the disk is full.
        """
        report = history[-1]
        if self.archive is None or report.epoch < 0:
            return
        chosen = {c.epoch for c in self.best_weights.choices(history).values() if c is not None}
        if self._origin is None and not has_adapter(module):
            self._origin = origin_weights(module, load_pipeline(module.base_id))
        self.archive.store(report.epoch, report.train_step, trained_weights(module), self._origin, chosen)

    def series(
        self, module: TrainedModule, newest: Report, *, dtype: torch.dtype | None = None, anchor: bool = False
    ) -> EpochSeries:
        """Every epoch that was kept, and where the base is known every share of it; as it stands, if none was."""
        base = load_pipeline(module.base_id) if module.base_id else None
        states, steps = self._states(module, base)
        if not states:
            states, steps = {newest.epoch: lambda: None}, {newest.epoch: newest.train_step}
        if self.best_weights.ship == "last":
            states = dict([max(states.items(), key=lambda item: item[0])])
        return EpochSeries(module, dict(sorted(states.items())), base, dtype, anchor=anchor, train_steps=steps)

    def _states(self, module: TrainedModule, base: Any) -> tuple[dict[int, WeightsSource], dict[int, int]]:
        """How to get each epoch's weights, from memory or disk, and its updates."""
        held = [e for e in self.best_weights.epochs.values() if e.epoch >= 0]
        stored = self.archive.stored() if self.archive else []
        states: dict[int, WeightsSource] = {e.epoch: partial(getattr, e, "weights") for e in held}
        if self.archive and stored:
            origin = origin_weights(module, base)
            states |= {e.epoch: partial(self.archive.weights, e.epoch, origin) for e in stored}
        steps = {e.epoch: e.train_step for e in held} | {e.epoch: e.train_step for e in stored}
        return states, steps
