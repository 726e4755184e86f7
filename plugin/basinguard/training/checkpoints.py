"""What a checkpoint of a fine-tune holds, and the one that stays behind when a fit is interrupted."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class InterruptCheckpoint(Callback):
    """Saves `interrupted.ckpt` when Ctrl-C, a signal or an error ends a fit. Never removes one."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves, if there is anything to save yet."""
        if not trainer.optimizers or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"{type(exception).__name__}: training stopped; resume it with --ckpt_path {path}")


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
