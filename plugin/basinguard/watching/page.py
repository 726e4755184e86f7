"""The page of a watch: where the run stands, in curves and words; one file, offline, renewed after every probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.files import write_text
from ..core.html import figure_uri, render_template
from ..core.report import Report, measured
from ..core.text import printable
from ..guard.status import RunStatus
from ..plots.run import dashboard, learning_figure
from .request import PAGE, WatchRequest

RENEWED = 30  # seconds after which a browser that shows the page reads it again


def write_page(folder: Path, history: Sequence[Report], status: RunStatus, request: WatchRequest) -> None:
    """Writes the page.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    ship = {"plain CFG": status.plain, "guarded sampling": status.guarded}
    page = render_template(
        __package__,
        "watch.html.jinja",
        title=printable(request.output.name),
        seconds=RENEWED,
        status=status,
        ship={how: choice.epoch + 1 if choice else None for how, choice in ship.items()},
        reports=list(reversed(measured(history))),
        plots=[
            ("Copies and what was taught", figure_uri(learning_figure(history, status))),
            ("All curves", figure_uri(dashboard(history, status))),
        ],
        base=printable(request.base),
    )
    write_text(folder / PAGE, page)
