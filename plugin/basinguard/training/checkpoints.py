"""What a checkpoint of a fine-tune holds, and the one that stays behind when a fit is interrupted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

RESUMED = ("lora", "loss", "seed")  # options that a resumed training takes from its settings, not from the checkpoint


class InterruptCheckpoint(Callback):
    """Saves `interrupted.ckpt` when Ctrl-C, a signal or an error ends a fit. Never removes one."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves, if there is anything to save yet."""
        if not trainer.optimizers or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"{type(exception).__name__}: training stopped; resume it with --ckpt_path {path}")


def require_same_training(module: LightningModule, trained: Collection[str], checkpoint: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of other weights; warns of one whose training had other options than it will go on with.

    Args:
        module: what is resumed, with its hyperparameters.
        trained: names of the parameters that are trained in it.
        checkpoint: as Lightning loads it.

    Raises:
        ValueError: see `require_same_weights`.
    """
    require_same_weights(trained, checkpoint["state_dict"])
    changes = list(_changes(checkpoint.get("hyper_parameters", {}), module.hparams))
    if changes:
        rank_zero_warn(f"the checkpoint was trained otherwise: {'; '.join(changes)}. Training goes on as it is set now")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Options that both have with another value, in words."""
    for name in RESUMED if not place else before:
        if name not in before or name not in now:
            continue
        if isinstance(before[name], Mapping):
            yield from _changes(before[name], now[name], f"{name}.")
        elif before[name] != now[name]:
            yield f"{place}{name} was {before[name]}, is {now[name]}"


def require_same_weights(trained: Collection[str], stored: Collection[str]) -> None:
    """Refuses a checkpoint of another configuration.

    Args:
        trained: names of the parameters that are trained here.
        stored: names of those in the checkpoint.

    Raises:
        ValueError: they are not the same; names one that differs.
    """
    differing = sorted(set(trained) ^ set(stored))
    if differing:
        raise ValueError(
            f"the checkpoint does not fit: {len(differing)} weights are on one side only, such as {differing[0]!r}; "
            "resume with the same base, method, lora.targets and train_text_encoder"
        )
