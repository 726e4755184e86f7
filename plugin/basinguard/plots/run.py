"""A run in one look: both risks, alignment, width, alarms, and every watched image across the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.estimate import Estimate
from ..core.report import Report
from ..core.text import epoch_name
from ..guard.checkpoint_selection import alignment_of, guarded_risk
from ..guard.status import RunStatus
from .style import (
    BLUE,
    GREEN,
    GREY,
    LIMIT,
    SIZE,
    VERMILLION,
    banded_line,
    canvas,
    not_measured,
    open_frame,
    whole_epochs,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, str, Callable[[Report], Estimate | None]]
STRIP = 40  # images shown in the heat strip; those whose gap rose most come first


def dashboard(history: Sequence[Report], status: RunStatus) -> Figure:
    """Six small panels over the epochs (0 = base model), the verdict above them.

    Lines break where a probe failed. A dotted line marks the epoch to ship with plain CFG, a dashed one the epoch to
    ship guarded.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 8.2), dpi=120, layout="constrained")  # two abreast: to be read on a phone as well
    axes = figure.subplots(3, 2).flat
    x = [report.epoch + 1 for report in history]
    panels: list[tuple[str, str, list[Line], float | None]] = [
        ("risk", "share of samples", [
            ("plain CFG", VERMILLION, lambda r: r.samples.risk),
            ("guarded, training captions", BLUE, guarded_risk),
            ("empty prompt", GREEN, lambda r: r.basin.risk_uncond),
        ], status.alpha),
        ("taught and alignment, plain CFG", "taught; cosine", [
            ("taught", GREEN, lambda r: r.heldout.taught), ("alignment", BLUE, alignment_of),
        ], None),
        ("basin width", "share of the trajectory", [("share of [0, T]", BLUE, lambda r: r.basin.width)], None),
        ("alarm: gap beyond held-out captions", "epsilon", [("excess", GREEN, lambda r: r.gaps.excess)], 0.0),
        ("alarm: critical scale beyond held-out", "log of sigma", [
            ("excess", BLUE, lambda r: r.critical_scales.excess),
        ], 0.0),
    ]  # fmt: skip
    for (title, unit, lines, limit), panel in zip(panels, axes, strict=False):
        if _panel(panel, x, history, title, lines, limit):
            panel.set_ylabel(unit, fontsize=8)
            _mark(panel, status)
    _strip(figure.axes[5], history)
    verdict = status.verdict
    sure = f", confidence {verdict.confidence:.2f}" if verdict.confidence is not None else ""
    figure.suptitle(f"{verdict.state}{sure}", fontsize=13, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(f"epochs trained (0 = base model); ship: {_ship(status)}", fontsize=9)
    return figure


def learning_figure(history: Sequence[Report], status: RunStatus, size: tuple[float, float] = SIZE) -> Figure:
    """Copies and what was taught over the epochs on one chart, each in its interval, and the epochs to ship.

    The dotted line is the epoch to ship with plain CFG, the dashed one the epoch to ship guarded; a number beyond the
    picture stays beyond it.
    """
    figure, axes = canvas("epochs trained (0 = base model)", "share", size)
    x = [report.epoch + 1 for report in history]
    for label, colour, read in (
        ("risk: share of samples that copy", VERMILLION, lambda r: r.samples.risk),
        ("taught: 0 = base model, 1 = true images", GREEN, lambda r: r.heldout.taught),
    ):
        banded_line(axes, x, [read(report) for report in history], colour, label)
    axes.axhline(status.alpha, color=VERMILLION, linewidth=0.9, linestyle=LIMIT)
    axes.axhline(0, color=GREY, linewidth=0.8)
    _mark(axes, status)
    axes.set_ylim(-0.5, 1.1)
    axes.legend(framealpha=0.85, edgecolor="none", fontsize=8, loc="upper left")
    axes.set_title(f"{status.verdict.state}\nship: {_ship(status)}", fontsize=9, loc="left")
    whole_epochs(axes)
    return figure


def _panel(
    axes: Axes, x: list[int], history: Sequence[Report], title: str, lines: list[Line], limit: float | None
) -> bool:
    """Draws it; whether anything of it was measured."""
    drawn = 0
    for label, colour, read in lines:
        values = [read(report) for report in history]
        if any(values):
            banded_line(axes, x, values, colour, label, markersize=3)
            drawn += 1
    if drawn and limit is not None:
        axes.axhline(limit, color=GREY, linewidth=0.9, linestyle=LIMIT)
    if not drawn:
        not_measured(axes)
        axes.set(xticks=[], yticks=[])
    if drawn > 1 or (drawn and limit):
        axes.legend(frameon=False, fontsize=7, loc="best")
    axes.set_title(title, fontsize=9)
    open_frame(axes)
    axes.tick_params(labelsize=8)
    if drawn:
        whole_epochs(axes)
    return drawn > 0


def _mark(axes: Axes, status: RunStatus) -> None:
    for choice, style in ((status.plain, ":"), (status.guarded, "--")):
        if choice is not None:
            axes.axvline(choice.epoch + 1, color=GREY, linestyle=style, linewidth=1)


def _strip(axes: Axes, history: Sequence[Report]) -> None:
    """One row an image, one column a report: its basin width; grey where it was not sampled."""
    widest: dict[int, float] = {}
    for report in history:
        for image in report.images:
            if image.width is not None:
                widest[image.index] = max(widest.get(image.index, 0.0), image.width)
    rows = sorted(widest, key=lambda index: (-widest[index], index))[:STRIP]
    axes.set_title("basin width by image, widest first", fontsize=9)
    if not rows:
        not_measured(axes)
        axes.set_axis_off()
        return
    table = np.full((len(rows), len(history)), math.nan)
    for column, report in enumerate(history):
        width = {image.index: image.width for image in report.images if image.width is not None}
        for row, index in enumerate(rows):
            table[row, column] = width.get(index, math.nan)
    axes.set_facecolor("#e5e5e5")
    heat = axes.imshow(table, aspect="auto", cmap="cividis", vmin=0, vmax=max(0.1, float(np.nanmax(table))))
    axes.set_xticks(range(len(history)), [str(report.epoch + 1) for report in history], fontsize=7)
    axes.set_yticks(range(len(rows)), [str(index) for index in rows], fontsize=6)
    axes.set_ylabel("image", fontsize=8)
    axes.figure.colorbar(heat, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _ship(status: RunStatus) -> str:
    choices = (("plain", status.plain, "dotted"), ("guarded", status.guarded, "dashed"))
    return ", ".join(
        f"{how} {epoch_name(choice.epoch)} ({line})" if choice else f"{how}: none keeps the risk"
        for how, choice, line in choices
    )
