"""The hooks of `MemorizationGuard`, for both of Lightning's import roots; what they need of your code: `protocols`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .isolation import trained_weights
from .monitors import Monitors
from .requirements import captioned_images, require_whole_weights
from .run_settings import RunSettings

CHECKPOINT_KEY = "basinguard"


class GuardHooks(RunSettings):
    """Measures, before training and after each epoch, how far the model has fallen into its training images.

    Scalars `guard/...` can be monitored in the same epoch: `EarlyStopping("guard/verdict", divergence_threshold=1.5,
    patience=1000)` ends a run that memorizes, `ModelCheckpoint(monitor="guard/ship_plain", mode="max")` keeps the epoch
    to ship. Loggers get them and pictures; `guard.json` in the log directory has every report, whatever ends the run.
    """

    _checkpoint: dict[str, Any] | None = None  # read before a fit has begun
    _monitors: Monitors | None = None  # of a fit that is probed, from its first update on
    _epoch = 0  # the latest that has begun
    _fitted: tuple[int, int] = (0, 0)  # module and datamodule of the fit that `run` belongs to

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Reads the training images; anything wrong with them is said here, before training starts.

        Each fit has a history of its own, but one that trains the same module further on the same images.
        """
        subject = (id(pl_module), id(trainer.datamodule))
        if stage != "fit" or (self.run is not None and trainer.global_step > 0 and subject == self._fitted):
            return
        self._fitted = subject
        require_whole_weights(trainer.strategy)
        self.run = self.run_on(captioned_images(trainer, pl_module), pl_module)
        if self._checkpoint:
            self.run.load_state_dict(self._checkpoint)
            self._checkpoint = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measures the base model; a resumed run measures what the interrupted one was about to."""
        self._monitors = None
        if self.run is None or trainer.fast_dev_run:
            return
        self._monitors = Monitors(trainer, self.run, self.should_probe)
        owed = self.run.begin(trainer.global_step, self._ended_epoch(trainer))
        for note in self.run.notes(pl_module):
            trainer.print(note)
        if owed is not None:
            self._probe(trainer, pl_module, owed)

    def _ended_epoch(self, trainer: Any) -> int | None:
        """One whose last batch a checkpoint has seen, but not its end, which Lightning then skips."""
        epoch, progress = trainer.current_epoch - 1, trainer.fit_loop.epoch_loop.batch_progress
        return epoch if progress.is_last_batch and self.should_probe(epoch) else None

    def _probe(self, trainer: Any, pl_module: Any, epoch: int) -> None:
        """Measures, and answers what was measured after an epoch."""
        if self.run is None:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # processes tell each other: all must ask
        now = {"epoch": epoch, "train_step": trainer.global_step}
        report = self.run.probe(pl_module, **now, folder=folder, loggers=trainer.loggers)
        if report is not None and epoch >= 0:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            trainer.should_stop |= self.run.respond(trainer.optimizers, schedulers)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Remembers which epoch this is, whatever ends it."""
        self._epoch = trainer.current_epoch

    def on_train_batch_end(self, trainer: Any, *step: Any) -> None:
        """Lets whoever waits hear of it."""
        if self._monitors is not None:
            self._monitors.beat()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures the model as this epoch left it, and logs every number for monitors."""
        if self._monitors is not None:
            if self.should_probe(trainer.current_epoch, of=trainer.max_epochs):
                self._probe(trainer, pl_module, epoch=trainer.current_epoch)
            self._monitors.update(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures what the fit ends with, whatever ended it: what is exported has been measured."""
        newest = max((report.train_step for report in self.history), default=0)
        if self._monitors is not None and trainer.global_step not in (0, newest):
            self._probe(trainer, pl_module, epoch=self._epoch)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Calibrates and exports: everything of the user's is saved by now, and a run killed here comes here again."""
        if self.export_to and self.run is not None and self.run.measured:
            self.run.data = getattr(trainer.datamodule, "arguments", self.run.data)
            self.run.export(pl_module, Path(self.export_to), self.terms, device=trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """The history and what was done, so that a resumed run goes on where it stopped."""
        return self.run.state_dict() if self.run is not None else self._checkpoint or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the interrupted run."""
        if self.run is None:
            self._checkpoint = state_dict
        else:
            self.run.load_state_dict(state_dict)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the weights to export, unless the checkpoint's own are those."""
        averaged = getattr(pl_module, "ema", None) is not None
        if self.run is not None and self.run.best_weights.epochs:
            checkpoint[CHECKPOINT_KEY] = self.run.best_weights.state_dict(trainer.global_step, averaged=averaged)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes them back; the module's weights have been restored already."""
        if self.run is not None:
            stored = checkpoint.get(CHECKPOINT_KEY, {})
            self.run.best_weights.load_state_dict(stored, lambda: trained_weights(pl_module))
