"""The hooks of `MemorizationGuard`, for both of Lightning's import roots; what they need of your code: `protocols`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.report import Report, last_search
from ..similarity.rulers import missing_ruler
from .breach_responder import BreachResponder
from .guarded_run import GuardedRun
from .isolation import trained_weights
from .monitors import excuse_monitors, log_for_monitors, require_monitors, show_on_progress_bar
from .requirements import require_parts, require_whole_weights
from .run_settings import RunSettings

CHECKPOINT_KEY = "basinguard"


class GuardHooks(RunSettings):
    """Measures, before training and after each epoch, how far the model has fallen into its training images.

    Scalars `guard/...` can be monitored in the same epoch: `EarlyStopping("guard/verdict", divergence_threshold=1.5,
    patience=1000)` ends a run that memorizes, `ModelCheckpoint(monitor="guard/ship_plain", mode="max")` keeps the epoch
    to ship. Loggers get them and pictures; `guard.json` in the log directory has every report, whatever ends the run.
    """

    run: GuardedRun | None = None  # from the beginning of a fit on
    responder: BreachResponder | None = None
    _checkpoint: dict[str, Any] | None = None  # read before a fit has begun
    _reports_logged = 0  # in this fit
    _epoch = 0  # the latest that has begun
    _fitted: tuple[int, int] = (0, 0)  # module and datamodule of the fit that `run` belongs to

    @property
    def history(self) -> list[Report]:
        """Every report so far, see `GuardedRun.history`."""
        return self.run.history if self.run else []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Reads the training images; anything wrong with them is said here, before training starts.

        Each fit has a history of its own, but one that trains the same module further on the same images.
        """
        subject = (id(pl_module), id(trainer.datamodule))
        if stage != "fit" or (self.run is not None and trainer.global_step > 0 and subject == self._fitted):
            return
        self._fitted = subject
        require_whole_weights(trainer.strategy)
        require_parts(trainer.datamodule, pl_module, exported=self.export_to is not None)
        self.responder = BreachResponder(self.response, pl_module, trainer.datamodule)
        self.run = self.run_on(trainer.datamodule, pl_module)
        if self.export_to:
            self.run.epochs.archive_in(Path(self.export_to), self.terms.epochs)
        if self._checkpoint:
            self.load_state_dict(self._checkpoint)
            self._checkpoint = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measures the base model; a resumed run measures what the interrupted one was about to."""
        if self.run is None or trainer.fast_dev_run:
            return
        excuse_monitors(trainer)
        self._reports_logged, run, continues = 0, self.run, bool(self.run.history)
        show_on_progress_bar(trainer, lambda: run.status.verdict.state if run.status else "")
        run.begin(trainer.global_step)
        for note in filter(None, (run.epochs.disk_note(pl_module), missing_ruler() if self.plan.taught else "")):
            trainer.print(note)
        if not run.history:
            self._probe(trainer, pl_module, epoch=-1)
        elif continues and self._is_owed(trainer, trainer.current_epoch - 1):
            self._probe(trainer, pl_module, epoch=trainer.current_epoch - 1)

    def _is_owed(self, trainer: Any, epoch: int) -> bool:
        """Whether a checkpoint was made after an epoch's last batch and before its end, which Lightning then skips."""
        at_the_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return at_the_end and epoch not in {-1, *(report.epoch for report in self.history)} and self.should_probe(epoch)

    def _probe(self, trainer: Any, pl_module: Any, epoch: int) -> None:
        """Measures, and answers what was measured after an epoch."""
        if self.run is None or self.responder is None:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # processes tell each other: all must ask
        report = self.run.probe(
            pl_module, epoch=epoch, train_step=trainer.global_step, folder=folder, loggers=trainer.loggers
        )
        if report is not None and epoch >= 0:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            trainer.should_stop |= self.responder.respond(self.run, trainer.optimizers, schedulers)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Remembers which epoch this is, whatever ends it."""
        self._epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures the model as this epoch left it, and logs every number for monitors."""
        if self.run is None or trainer.fast_dev_run:
            return
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        if is_last or self.should_probe(trainer.current_epoch):
            self._probe(trainer, pl_module, epoch=trainer.current_epoch)
        if last_search(self.history) is not None:
            require_monitors(trainer)
        if self.run.measured and len(self.history) != self._reports_logged:
            self._reports_logged = len(self.history)
            log_for_monitors(pl_module, self.history, self.run.status)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures what the fit ends with, whatever ended it: what is exported has been measured."""
        if self.run is None or trainer.fast_dev_run or trainer.global_step == 0:
            return
        if trainer.global_step != max(report.train_step for report in self.history):
            self._probe(trainer, pl_module, epoch=self._epoch)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Calibrates and exports: everything of the user's is saved by now, and a run killed here comes here again."""
        if self.export_to and self.run is not None and self.run.measured:
            self.run.export(pl_module, Path(self.export_to), self.terms, device=trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """The history and what was done, so that a resumed run goes on where it stopped."""
        if self.run is None or self.responder is None:
            return self._checkpoint or {}
        return {**self.run.state_dict(), **self.responder.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the interrupted run."""
        if self.run is None or self.responder is None:
            self._checkpoint = state_dict
            return
        self.run.load_state_dict(state_dict)
        if not self.run.other_data:
            self.responder.load_state_dict(state_dict)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the weights to export, unless the checkpoint's own are those."""
        averaged = getattr(pl_module, "ema", None) is not None
        if self.run is not None and self.run.best_weights.epochs:
            checkpoint[CHECKPOINT_KEY] = self.run.best_weights.state_dict(trainer.global_step, averaged=averaged)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes them back; the module's weights have been restored already."""
        if self.run is not None:
            stored = checkpoint.get(CHECKPOINT_KEY) or {}
            self.run.best_weights.load_state_dict(stored, lambda: trained_weights(pl_module))
