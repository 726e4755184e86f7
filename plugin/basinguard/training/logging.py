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
from ..plots.contact_sheet import contact_strip
from ..plots.run import dashboard, learning_figure
from ..plots.style import CARD

MEASURED = (
    *("risk", "width", "log_width", "exit", "gap", "gap_heldout", "gap_excess", "gap_auc"),
    *("sigma_c", "sigma_c_excess", "caption_gap", "similarity_p95", "similarity_heldout", "risk_uncond", "alignment"),
    *("alignment_heldout", "taught"),
)
FIRST = ("risk", "taught", "verdict", "forecast", "ship_plain", "ship_guarded")  # the cards that a run is watched by
MARGINS: dict[str, dict[str, tuple[str, ...]]] = {
    "guard": {"copies and what was taught": ("risk", "taught")},
    "guard details": {
        "what held-out prompts follow": ("alignment_heldout",),
        "early alarms": ("gap_excess", "sigma_c_excess"),
        "basin width": ("width",),
    },
}


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


def write_guard_file(
    target: Path, status: RunStatus, history: Sequence[Report], image_sha256: Sequence[str] = ()
) -> None:
    """Writes `guard.json`, whole or not at all; see `status.GuardFile`.

    Raises:
        OSError: it cannot be written.
    """
    text = GuardFile(status=status, history=tuple(history), image_sha256=tuple(image_sha256)).to_json()
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
    values = {tag(name): value for name, value in scalars(guard.history, status).items()}
    values |= {"epoch": newest.epoch} if newest.epoch >= 0 else {}
    for logger in loggers:
        logger.log_metrics(values, step=newest.train_step)
        if newest.epoch < 0 and hasattr(logger.experiment, "add_custom_scalars"):
            add_margin_charts(logger.experiment)
    _log_pictures(loggers, guard, model, status)


def tag(name: str) -> str:
    """Where loggers show a scalar: the few that a run is watched by first, all others behind them.

    TensorBoard groups by what stands before the first slash, and sorts inside a group.

    Example:
        >>> tag("guard/taught"), tag("guard/taught_low"), tag("guard/gap")
        ('guard/taught', 'guard_details/taught_low', 'guard_details/gap')
    """
    folder, _, short = name.partition("/")
    return name if short in FIRST else f"{folder}_details/{short}"


def add_margin_charts(board: Any) -> None:
    """TensorBoard's custom scalars: `guard/risk` and `guard/taught` on one chart, each in its interval, then others.

    The writer's own `add_custom_scalars` draws one series a chart, TensorBoard's own asks for TensorFlow.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(title=chart, margin=layout_pb2.MarginChartContent(series=[*map(_margin, names)]))
                for chart, names in charts.items()
            ],
        )
        for title, charts in MARGINS.items()
    ]
    layout = layout_pb2.Layout(category=categories)
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME))
    text = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=text, metadata=plugin)
    board._get_file_writer().add_summary(Summary(value=[value]))


def _margin(name: str) -> Any:
    from tensorboard.plugins.custom_scalar import layout_pb2

    value, low, high = (tag(f"guard/{name}{end}") for end in ("", "_low", "_high"))
    return layout_pb2.MarginChartContent.Series(value=value, lower=low, upper=high)


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
            sheet = contact_strip(*guard.show(model, searched.basin.transition if searched else None))
            for board in boards:
                board.add_image("guard/contact_sheet", pil_to_tensor(sheet), train_step)
            for album in albums:
                album.log_image(key="guard/contact_sheet", images=[sheet], step=train_step)


def _draw(board: Any, history: Sequence[Report], status: RunStatus | None, train_step: int) -> None:
    board.add_figure("guard_details/history", history_figure(history, CARD), train_step)
    board.add_figure("guard_details/curve", curve_figure(history, CARD), train_step)
    if status is not None:
        board.add_figure("guard/risk_and_taught", learning_figure(history, status, CARD), train_step)
        board.add_figure("guard_details/dashboard", dashboard(history, status), train_step)
        board.add_text("guard/status", str(status), train_step)
    board.add_text("guard_details/report", changes_table(history), train_step)
