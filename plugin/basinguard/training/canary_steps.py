"""Counts, while training runs, in how many optimizer steps each canary was: what is not trained on says nothing."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class CanarySteps(Callback):
    """Optimizer steps whose loss each canary was in.

    A canary that a batch holds twice, or that several accumulated batches hold, was in one step; one whose loss a
    filter leaves out was in none.

    Args:
        first: place of the first canary among the images.
        count: of canaries, controls included.

    Attributes:
        steps: of each, [count] int64; in a run of several processes of all of them once training ended.
    """

    def __init__(self, first: int, count: int) -> None:
        self.first, self.steps = first, torch.zeros(count, dtype=torch.long)
        self._waiting = torch.zeros(count, dtype=torch.bool)
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps are counted from where training begins or goes on."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the canaries of a batch, and counts them where its optimizer step was taken."""
        weights = getattr(pl_module, "row_weights", None)
        places = torch.as_tensor(batch["index"]).cpu() - self.first
        if weights is not None:
            places = places[weights.cpu() > 0]
        self._waiting[places[(places >= 0) & (places < len(self.steps))]] = True
        if trainer.global_step > self._step:
            self.steps += self._waiting
            self._waiting.zero_()
            self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds up what the processes of a distributed run counted."""
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(self.steps.to(pl_module.device), reduce_op="sum")
            self.steps = torch.as_tensor(total).cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"steps": self.steps.clone()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Takes it back."""
        self.steps = state_dict["steps"].clone()


def canary_steps(datamodule: Any) -> list[Callback]:
    """The counter of a data module's canaries; none where it plants none."""
    canaries = getattr(datamodule, "canaries", ())
    planted = sum(canary.repeats > 0 for canary in canaries)
    return [CanarySteps(len(datamodule.items) - planted, len(canaries))] if planted else []
