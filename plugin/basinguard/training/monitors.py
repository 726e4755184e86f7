"""What Lightning's own callbacks and its progress bar see of the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Nothing was measured in full yet: `EarlyStopping` on a guard's number waits for it instead of ending the run."""
    for stop in trainer.early_stopping_callbacks:
        if str(stop.monitor).startswith("guard/"):
            stop.strict = False


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
