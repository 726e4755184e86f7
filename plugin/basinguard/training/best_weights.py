"""The weights of the two epochs to ship, held while training goes on and saved with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from ..core.report import Report
from ..guard.checkpoint_selection import EpochChoice, SamplingMode, choose_checkpoint
from .guard_options import ShippedEpoch


@dataclass(frozen=True)
class EpochWeights:
    """Weights of an epoch to ship.

    Attributes:
        epoch, train_step: when they were measured.
        weights: trained parameters by name, as measured: averaged ones where training averages.
    """

    epoch: int
    train_step: int
    weights: dict[str, torch.Tensor]


@dataclass
class BestWeights:
    """Holds the best epoch so far for each way of sampling; the base model's until an epoch can be shipped.

    One copy of the trained weights in main memory, or two where the epochs differ.

    Args:
        alpha: risk that is allowed.
        ship: "best" by `checkpoint_selection.choose_checkpoint`, or the "last" that keeps the risk.
    """

    alpha: float
    ship: ShippedEpoch = "best"
    epochs: dict[SamplingMode, EpochWeights] = field(default_factory=dict)

    def choices(self, history: Sequence[Report]) -> dict[SamplingMode, EpochChoice | None]:
        """The epoch to ship for each way of sampling."""
        return {
            how: choose_checkpoint(history, self.alpha, how, latest=self.ship == "last")
            for how in get_args(SamplingMode)
        }

    def update(self, history: Sequence[Report], weights: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Takes the weights of the newest report where it is the one to ship.

        For guarded sampling also while a budget has paid for no exits since the base model: nothing speaks against
        them, and the calibration at the end has the last word.
        """
        newest = history[-1]
        chosen = [how for how, choice in self.choices(history).items() if _is(choice, newest)]
        if newest.epoch < 0:
            chosen = list(get_args(SamplingMode))
        elif not any(report.searched for report in history if report.epoch >= 0):
            chosen.append("guarded")
        if chosen:
            epoch = EpochWeights(newest.epoch, newest.train_step, weights())
            self.epochs.update(dict.fromkeys(chosen, epoch))

    def weights(self, how: SamplingMode) -> dict[str, torch.Tensor] | None:
        """Those of the epoch to ship for a way of sampling; None where none are held."""
        return self.epochs[how].weights if how in self.epochs else None

    def state_dict(self, train_step: int, *, averaged: bool) -> dict[str, Any]:
        """What a checkpoint of this train step must hold besides its own weights, which are not stored twice."""
        return {
            how: {
                "epoch": epoch.epoch,
                "train_step": epoch.train_step,
                "weights": {} if epoch.train_step == train_step and not averaged else epoch.weights,
            }
            for how, epoch in self.epochs.items()
        }

    def load_state_dict(self, state: dict[str, Any], own: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Takes them back; `own` are the checkpoint's weights."""
        checkpoint: dict[str, torch.Tensor] = {}
        for how, stored in state.items():
            if not stored["weights"]:
                checkpoint = checkpoint or own()
            weights = stored["weights"] or checkpoint
            self.epochs[how] = EpochWeights(stored["epoch"], stored["train_step"], weights)  # type: ignore[index]


def _is(choice: EpochChoice | None, report: Report) -> bool:
    return choice is not None and (choice.epoch, choice.train_step) == (report.epoch, report.train_step)
