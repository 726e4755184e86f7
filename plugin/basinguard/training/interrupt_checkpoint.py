"""What stays behind when a fit is interrupted."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class InterruptCheckpoint(Callback):
    """Saves `interrupted.ckpt` when Ctrl-C, a signal or an error ends a fit. Never removes one."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves, if there is anything to save yet."""
        if not trainer.optimizers or trainer.fast_dev_run:
            return
        path = Path(trainer.log_dir or trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        rank_zero_info(f"{type(exception).__name__}: training stopped; resume it with --ckpt_path {path}")
