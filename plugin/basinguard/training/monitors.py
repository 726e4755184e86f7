"""What Lightning's own callbacks and its progress bar see of the guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core.report import Report
from ..guard.status import RunStatus
from .logging import newest_scalars

ON_BAR = ("risk", "taught", "gap_since_base")


def log_for_monitors(pl_module: Any, history: Sequence[Report], status: RunStatus | None) -> None:
    """The newest value of everything, which lasts as long as the fit; loggers got what is new already.

    Every process logs the same numbers; taking the largest keeps them exact.
    """
    values, exact = newest_scalars(history, status), {"logger": False, "sync_dist": True, "reduce_fx": "max"}
    pl_module.log_dict(values, **exact)
    on_bar = {
        name: values[f"guard/{name}"] for name in ("risk", "taught", "gap_since_base") if f"guard/{name}" in values
    }
    pl_module.log_dict(on_bar, prog_bar=True, **exact)


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
    """Adds the verdict to what the progress bar shows; a text, which Lightning's own `log` does not take."""
    bar = trainer.progress_bar_callback
    if bar is None or not hasattr(bar, "get_metrics"):
        return
    get = type(bar).get_metrics

    def get_metrics(*args: Any) -> dict[str, Any]:
        verdict = state()
        return {**get(bar, *args), **({"guard": verdict} if verdict else {})}

    bar.get_metrics = get_metrics
