"""What Lightning's own callbacks and its progress bar see of the guard."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..core.progress import EVERY, duration, say, shown
from ..core.report import last_search
from .guarded_run import GuardedRun
from .logging import newest_scalars

ON_BAR = ("risk", "taught", "gap_since_base")
EXACT = {"logger": False, "sync_dist": True, "reduce_fx": "max"}  # every process logs the same numbers


class Monitors:
    """The callbacks of one fit that look at the guard's numbers, and its progress bar."""

    def __init__(self, trainer: Any, run: GuardedRun, should_probe: Callable[[int, int], bool]) -> None:
        self.trainer, self.run, self.should_probe = trainer, run, should_probe
        self._logged = 0  # reports
        self._updates, self._reports = trainer.global_step, len(run.history)  # of the run that is taken up
        self._begun = self._told = time.monotonic()
        excuse_monitors(trainer)
        show_on_progress_bar(trainer, lambda: run.status.verdict.state if run.status else "")

    def beat(self) -> None:
        """Says how far the training is, every half minute, where no terminal shows its progress bar."""
        now, trainer = time.monotonic(), self.trainer
        if sys.stderr.isatty() or now - self._told < EVERY or not trainer.is_global_zero:
            return
        self._told = now
        with shown():
            state = self.run.status.verdict.state if self.run.status else ""
            say(training_line(trainer, self._left(now - self._begun), state))

    def _left(self, seconds: float) -> float | None:
        """Seconds that updates and probes to come will take, each at its pace in these; None where nobody knows."""
        trainer = self.trainer
        done, updates = trainer.global_step - self._updates, trainer.estimated_stepping_batches
        if done < 1 or updates == float("inf"):
            return None
        probes = [report.seconds for report in self.run.history[self._reports :]]
        training = (seconds - sum(probes)) / done * (updates - trainer.global_step)
        epochs = range(trainer.current_epoch, max(trainer.max_epochs or 0, trainer.current_epoch))
        due = sum(self.should_probe(epoch, trainer.max_epochs) for epoch in epochs)
        return training + (due * sum(probes) / len(probes) if probes else 0)

    def update(self, pl_module: Any) -> None:
        """Logs the newest value of everything, which lasts as long as the fit; loggers got what is new already."""
        history = self.run.history
        if last_search(history) is not None:
            require_monitors(self.trainer)
        if self.run.measured and len(history) != self._logged:
            self._logged = len(history)
            values = newest_scalars(history, self.run.status)
            on_bar = {name: values[f"guard/{name}"] for name in ON_BAR if f"guard/{name}" in values}
            pl_module.log_dict(values, **EXACT)
            pl_module.log_dict(on_bar, prog_bar=True, **EXACT)


def training_line(trainer: Any, left: float | None, state: str) -> str:
    """Epoch, update and how many seconds of a fit are left, with the last verdict."""
    of = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
    until = f", about {duration(left)} left" if left is not None else ""
    verdict = f"; last: {state}" if state else ""
    return f"training: epoch {trainer.current_epoch + 1}{of}, update {trainer.global_step}{until}{verdict}"


def excuse_monitors(trainer: Any) -> None:
    """Nothing was measured yet: Lightning's callbacks on a guard's number wait for it, also when they validate earlier.

    `ModelCheckpoint` then looks at the end of training epochs, unless it was given another moment.
    """
    for stop in _on_guard(trainer.early_stopping_callbacks):
        if stop.strict:
            stop.strict, stop.basinguard_excused = False, True
    for keep in _on_guard(trainer.checkpoint_callbacks):
        if keep._save_on_train_epoch_end is None:
            keep._save_on_train_epoch_end = True


def require_monitors(trainer: Any) -> None:
    """Everything was measured: a number that `EarlyStopping` does not find now is misspelt, as Lightning says."""
    for stop in _on_guard(trainer.early_stopping_callbacks):
        if vars(stop).pop("basinguard_excused", False):
            stop.strict = True


def _on_guard(callbacks: Iterable[Any]) -> list[Any]:
    return [each for each in callbacks if str(each.monitor).startswith("guard/")]


def show_on_progress_bar(trainer: Any, state: Callable[[], str]) -> None:
    """Adds the verdict to what the progress bar shows, a text, which Lightning's own `log` does not take; in rich's bar
    epochs are counted from 1."""
    bar = trainer.progress_bar_callback
    if bar is None or not hasattr(bar, "get_metrics"):
        return
    get = type(bar).get_metrics

    def get_metrics(*args: Any) -> dict[str, Any]:
        verdict = state()
        return {**get(bar, *args), **({"guard": verdict} if verdict else {})}

    bar.get_metrics = get_metrics
    if hasattr(bar, "_get_train_description"):  # counts from 0: the last of 200 epochs would be 199/199

        def description(epoch: int) -> str:
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            return f"Epoch {epoch + 1}{of}".ljust(len(bar.validation_description))

        bar._get_train_description = description
