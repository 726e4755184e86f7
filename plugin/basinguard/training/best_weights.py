"""The weights of the two epochs to ship, kept while training goes on, saved with it, exported at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from ..core.files import whole_directory
from ..core.report import Report
from ..exports.directory import write_sums
from ..exports.privacy import forget_origins
from ..guard.checkpoint_selection import Choice, SamplingMode, choose_checkpoint
from .guarded_run import holding
from .options import ShippedEpoch

CHOICE_FILE = "basinguard-choice.json"
PLAIN_CARD = """# The epoch that plain CFG may sample

Epoch {epoch} (update {train_step}) of a guarded run, a stock diffusers pipeline without any rule. {why}.

Measured on training captions with plain CFG while training; no promise was calibrated. The guarded checkpoint of the
same run lies beside this directory.
"""


@dataclass(frozen=True)
class Kept:
    """Weights of an epoch to ship.

    Attributes:
        epoch, train_step: when they were measured.
        weights: trained parameters by name, as measured: averaged ones where training averages.
    """

    epoch: int
    train_step: int
    weights: dict[str, torch.Tensor]


@dataclass
class Keeper:
    """Keeps the best epoch so far for each way of sampling; the base model's until an epoch can be shipped.

    One copy of the trained weights in main memory, or two where the epochs differ.

    Args:
        allowed: risk that is accepted.
        ship: "best" by `choice.choose`, or the "last" that keeps the risk.
    """

    allowed: float
    ship: ShippedEpoch = "best"
    kept: dict[SamplingMode, Kept] = field(default_factory=dict)

    def choices(self, history: Sequence[Report]) -> dict[SamplingMode, Choice | None]:
        """The epoch to ship for each way of sampling."""
        return {
            how: choose_checkpoint(history, self.allowed, how, latest=self.ship == "last")
            for how in get_args(SamplingMode)
        }

    def look(self, history: Sequence[Report], weights: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Takes the weights of the newest report where it is the one to ship.

        For guarded sampling also while a budget has paid for no exits since the base model: nothing speaks against
        them, and the calibration at the end has the last word.
        """
        newest = history[-1]
        taken = [how for how, choice in self.choices(history).items() if _is(choice, newest)]
        if newest.epoch < 0:
            taken = list(get_args(SamplingMode))
        elif not any(report.searched for report in history if report.epoch >= 0):
            taken.append("guarded")
        if taken:
            kept = Kept(newest.epoch, newest.train_step, weights())
            self.kept.update(dict.fromkeys(taken, kept))

    def state_dict(self, train_step: int, *, averaged: bool) -> dict[str, Any]:
        """What a checkpoint of this train step must hold besides its own weights, which are not stored twice."""
        return {
            how: {
                "epoch": kept.epoch,
                "train_step": kept.train_step,
                "weights": {} if kept.train_step == train_step and not averaged else kept.weights,
            }
            for how, kept in self.kept.items()
        }

    def load_state_dict(self, state: dict[str, Any], own: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Takes them back; `own` are the checkpoint's weights."""
        if "weights" in state:  # written before there were two
            state = {"guarded": state}
        mine: dict[str, torch.Tensor] = {}
        for how, stored in state.items():
            if not stored["weights"]:
                mine = mine or own()
            weights = stored["weights"] or mine
            self.kept[how] = Kept(stored["epoch"], stored["train_step"], weights)  # type: ignore[index]


def _is(choice: Choice | None, report: Report) -> bool:
    return choice is not None and (choice.epoch, choice.train_step) == (report.epoch, report.train_step)


@contextmanager
def as_kept(pl_module: Any, kept: Kept | None) -> Iterator[None]:
    """Inside, the module holds the kept weights, in place of any average."""
    average = getattr(pl_module, "ema", None)
    if kept is None:
        yield
        return
    with holding(pl_module, kept.weights):
        if average is not None:
            pl_module.ema = None
        try:
            yield
        finally:
            if average is not None:
                pl_module.ema = average


def plain_directory(export_to: Path) -> Path:
    """Where the epoch for plain CFG goes: beside the guarded export."""
    return export_to.with_name(f"{export_to.name}-plain")


def export_plain(pl_module: Any, choice: Choice, out: Path) -> None:
    """Writes the module's weights as a stock pipeline with the reasons for their epoch, whole or not at all.

    Raises:
        FileExistsError: `out` holds files that no export wrote.
    """
    pipe = pl_module.export_pipeline()
    with whole_directory(out, overwrite=True) as folder:
        pipe.save_pretrained(folder, safe_serialization=True)
        forget_origins(folder)
        (folder / CHOICE_FILE).write_text(json.dumps(choice.model_dump(), indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(PLAIN_CARD.format(**choice.model_dump()), encoding="utf-8")
        write_sums(folder)
