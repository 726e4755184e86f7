"""What a checkpoint of a fine-tune holds, and the one that stays behind when a fit is interrupted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

Change = tuple[str, Any, Any]  # of an option: its dotted name, its value before and now
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
    before = {k: v for k, v in checkpoint.get("hyper_parameters", {}).items() if k in RESUMED}
    if changes := [f"{name} was {old}, is {new}" for name, old, new in changed_options(before, module.hparams)]:
        rank_zero_warn(f"the checkpoint was trained otherwise: {'; '.join(changes)}. Training goes on as it is set now")


def changed_options(
    before: Mapping[str, Any], now: Mapping[str, Any], place: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of every option that both have, and that differs.

    Example:
        >>> list(changed_options({"lora": {"rank": 4, "alpha": 8}, "seed": 0}, {"lora": {"rank": 8, "alpha": 8}}))
        [('lora.rank', 4, 8)]
    """
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changed_options(old, new, f"{place}{name}.")
        elif old != new:
            yield f"{place}{name}", old, new


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
