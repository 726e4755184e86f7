"""What loggers get of a probe: scalars for all of them, pictures for those that take some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import pil_to_tensor

from ..core.files import whole_file
from ..core.report import Report, last_search, measured
from ..guard.changes import changes_table
from ..guard.guard import Guard
from ..guard.status import GuardFile, RunStatus
from ..guard.verdict import newest_known
from ..pipelines.latent_model import LatentModel
from ..plots.basin import curve_figure, history_figure
from ..plots.contact_sheet import contact_sheet
from ..plots.run import dashboard

MEASURED = (
    *("risk", "width", "log_width", "exit", "gap", "gap_heldout", "gap_excess", "gap_auc"),
    *("sigma_c", "sigma_c_excess", "caption_gap", "similarity_p95", "similarity_heldout", "risk_uncond", "alignment"),
    *("alignment_heldout", "fidelity"),
)


def scalars(history: Sequence[Report], status: RunStatus | None = None) -> dict[str, float]:
    """What is logged of the last measured report: every estimate and its ends, and how far it moved since the base.

    With a status also `guard/verdict`, 0 safe to 3 too late (an unknown one keeps the number of the last that was
    known), `guard/forecast` in epochs, and `guard/ship_plain` and `guard/ship_guarded`: the train step where the newest
    epoch is the one to ship, else 0.
    """
    values = _scalars(measured(history)[-1], history[0])
    return values if status is None else values | _status_scalars(history, status)


def newest_scalars(history: Sequence[Report], status: RunStatus | None = None) -> dict[str, float]:
    """The same, and of what the last report did not measure, the newest value: what is monitored must not vanish."""
    values: dict[str, float] = {}
    for report in measured(history):
        values |= _scalars(report, history[0])
    return values if status is None else values | _status_scalars(history, status)


def _scalars(last: Report, base: Report) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in MEASURED:
        estimate = last.estimates.get(name)
        if estimate is None:
            continue
        values |= {
            f"guard/{name}": estimate.value,
            f"guard/{name}_low": estimate.low,
            f"guard/{name}_high": estimate.high,
        }
        before = base.estimates.get(name)
        if before is not None:
            values[f"guard/{name}_since_base"] = estimate.value - before.value
    if last.basin.transition is not None:
        values["guard/transition"] = last.basin.transition
    return values


def _status_scalars(history: Sequence[Report], status: RunStatus) -> dict[str, float]:
    verdict = newest_known(history, status.alpha)
    values = {"guard/verdict": float(verdict.level if verdict else 0)}
    if status.forecast.epochs is not None:
        values["guard/forecast"] = status.forecast.epochs.value
    for name, choice in (("plain", status.plain), ("guarded", status.guarded)):
        newest = choice is not None and choice.train_step == history[-1].train_step
        values[f"guard/ship_{name}"] = float(history[-1].train_step if newest else 0)
    return values


def write_guard_file(target: Path, status: RunStatus, history: Sequence[Report]) -> None:
    """Writes `guard.json`, whole or not at all; see `status.GuardFile`.

    Raises:
        OSError: it cannot be written.
    """
    text = GuardFile(status=status, history=tuple(history)).to_json()
    with whole_file(target, overwrite=True) as partial:
        partial.write_text(text, "utf-8")


def log_report(loggers: Sequence[Any], guard: Guard, model: LatentModel, status: RunStatus | None) -> None:
    """Gives every logger the numbers of the newest report, and pictures to those that take some.

    Args:
        loggers: with `log_metrics(values, step=...)`, as Lightning's have it.
        guard: whose history it is.
        model: draws the samples of the contact sheet.
        status: where the run stands, if that is known.
    """
    newest = guard.history[-1]
    values = scalars(guard.history, status) | ({"epoch": newest.epoch} if newest.epoch >= 0 else {})
    for logger in loggers:
        logger.log_metrics(values, step=newest.train_step)
    _log_pictures(loggers, guard, model, status)


def _log_pictures(loggers: Sequence[Any], guard: Guard, model: LatentModel, status: RunStatus | None) -> None:
    """Curves and a contact sheet for every logger that can take them; what it can do decides, not what it is.

    Both are left out where a budget of time cannot pay for them.
    """
    train_step = guard.history[-1].train_step
    boards = [logger.experiment for logger in loggers if hasattr(logger.experiment, "add_figure")]
    albums = [logger for logger in loggers if hasattr(logger, "log_image")]
    if boards and guard.affords("curves"):
        with guard.charged("curves"):
            for board in boards:
                _draw(board, guard.history, status, train_step)
    if (boards or albums) and guard.affords("contact sheet"):
        with guard.charged("contact sheet"):
            searched = last_search(guard.history)
            sheet = contact_sheet(*guard.show(model, searched.basin.transition if searched else None))
            for board in boards:
                board.add_image("guard/contact_sheet", pil_to_tensor(sheet), train_step)
            for album in albums:
                album.log_image(key="guard/contact_sheet", images=[sheet], step=train_step)


def _draw(board: Any, history: Sequence[Report], status: RunStatus | None, train_step: int) -> None:
    board.add_figure("guard/history", history_figure(history), train_step)
    board.add_figure("guard/curve", curve_figure(history), train_step)
    if status is not None:
        board.add_figure("guard/dashboard", dashboard(history, status), train_step)
        board.add_text("guard/status", str(status), train_step)
    board.add_text("guard/report", changes_table(history), train_step)
