"""What loggers get of a probe: scalars for all of them, pictures for those that take some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.transforms.functional import pil_to_tensor

from ..guard import Guard
from ..plots import contact_sheet, curve_figure, history_figure
from ..records import Estimate, Report, measured, standing
from ..words import moved
from .diffusers import LatentModel

MEASURED = (
    *("risk", "width", "log_width", "exit", "gap", "gap_heldout", "gap_excess", "gap_auc"),
    *("sigma_c", "sigma_c_excess", "caption_gap", "similarity_p95", "similarity_heldout", "risk_uncond", "alignment"),
)


def scalars(history: Sequence[Report]) -> dict[str, float]:
    """What is logged of the last measured report: every estimate and its ends, and how far it moved since the base."""
    return _scalars(measured(history)[-1], history[0])


def remembered(history: Sequence[Report]) -> dict[str, float]:
    """The same, and of what the last report did not measure, the newest value: what is monitored must not vanish."""
    values: dict[str, float] = {}
    for report in measured(history):
        values |= _scalars(report, history[0])
    return values


def _scalars(last: Report, base: Report) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in MEASURED:
        estimate: Estimate | None = getattr(last, name)
        if estimate is None:
            continue
        values |= {
            f"guard/{name}": estimate.value,
            f"guard/{name}_low": estimate.low,
            f"guard/{name}_high": estimate.high,
        }
        before = getattr(base, name)
        if before is not None:
            values[f"guard/{name}_since_base"] = estimate.value - before.value
    if last.transition is not None:
        values["guard/transition"] = last.transition
    return values


def show(loggers: Sequence[Any], guard: Guard, model: LatentModel, train_step: int) -> None:
    """Curves and a contact sheet for every logger that can take them; what it can do decides, not what it is.

    Both are left out where a budget of time cannot pay for them.
    """
    boards = [logger.experiment for logger in loggers if hasattr(logger.experiment, "add_figure")]
    albums = [logger for logger in loggers if hasattr(logger, "log_image")]
    if boards and guard.affords("curves"):
        with guard.charged("curves"):
            for board in boards:
                board.add_figure("guard/history", history_figure(guard.history), train_step)
                board.add_figure("guard/curve", curve_figure(guard.history), train_step)
                board.add_text("guard/report", moved(guard.history), train_step)
    if (boards or albums) and guard.affords("contact sheet"):
        with guard.charged("contact sheet"):
            stands = standing(guard.history)
            sheet = contact_sheet(*guard.show(model, stands.transition if stands else None))
            for board in boards:
                board.add_image("guard/contact_sheet", pil_to_tensor(sheet), train_step)
            for album in albums:
                album.log_image(key="guard/contact_sheet", images=[sheet], step=train_step)
