"""A run in one look: both risks, alignment, width, alarms, and every watched image across the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.estimate import Estimate
from ..core.report import Report
from ..guard.checkpoint_selection import alignment_of, guarded_risk
from ..guard.status import RunStatus
from .contact_sheet import BLUE, GREEN, GREY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, str, Callable[[Report], Estimate | None]]
STRIP = 40  # images shown in the heat strip; those whose gap rose most come first


def dashboard(history: Sequence[Report], standing: RunStatus) -> Figure:
    """Six small panels over the epochs (-1 = base model), the verdict above them.

    Lines break where a probe failed. A dotted line marks the epoch to ship with plain CFG, a dashed one the epoch to
    ship guarded.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3).flat
    x = [report.epoch for report in history]
    panels: list[tuple[str, list[Line], float | None]] = [
        ("risk", [
            ("plain CFG", VERMILLION, lambda r: r.samples.risk),
            ("guarded, training captions", BLUE, guarded_risk),
            ("empty prompt", GREEN, lambda r: r.basin.risk_uncond),
        ], standing.alpha),
        ("alignment and fidelity, plain CFG", [
            ("alignment", BLUE, alignment_of), ("fidelity", GREEN, lambda r: r.heldout.fidelity),
        ], None),
        ("basin width", [("share of [0, T]", BLUE, lambda r: r.basin.width)], None),
        ("alarm: gap beyond held-out captions", [("excess", GREEN, lambda r: r.gaps.excess)], 0.0),
        ("alarm: log critical scale beyond held-out", [
            ("excess", BLUE, lambda r: r.critical_scales.excess),
        ], 0.0),
    ]  # fmt: skip
    for (title, lines, limit), panel in zip(panels, axes, strict=False):
        _panel(panel, x, history, title, lines, limit)
        _mark(panel, standing)
    _strip(figure.axes[5], history)
    verdict = standing.verdict
    sure = f", confidence {verdict.confidence:.2f}" if verdict.confidence is not None else ""
    figure.suptitle(f"{verdict.state}{sure}", fontsize=13, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(f"epoch (-1 = base model); ship: {_ship(standing)}", fontsize=9)
    return figure


def _panel(
    axes: Axes, x: list[int], history: Sequence[Report], title: str, lines: list[Line], limit: float | None
) -> None:
    drawn = 0
    for label, colour, read in lines:
        values = [read(report) for report in history]
        if any(values):
            value, low, high = zip(*((e.value, e.low, e.high) if e else (math.nan,) * 3 for e in values), strict=True)
            axes.plot(x, value, color=colour, marker="o", markersize=3, label=label)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            drawn += 1
    if limit is not None:
        axes.axhline(limit, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    if not drawn:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    if drawn > 1 or (drawn and limit):
        axes.legend(frameon=False, fontsize=7, loc="best")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)


def _mark(axes: Axes, standing: RunStatus) -> None:
    for choice, style in ((standing.plain, ":"), (standing.guarded, "--")):
        if choice is not None:
            axes.axvline(choice.epoch, color=GREY, linestyle=style, linewidth=1)


def _strip(axes: Axes, history: Sequence[Report]) -> None:
    """One row an image, one column a report: its basin width; grey where it was not sampled."""
    seen: dict[int, float] = {}
    for report in history:
        for image in report.images:
            if image.width is not None:
                seen[image.index] = max(seen.get(image.index, 0.0), image.width)
    rows = sorted(seen, key=lambda index: (-seen[index], index))[:STRIP]
    axes.set_title("basin width of each sampled image, widest first", fontsize=9)
    if not rows:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set_axis_off()
        return
    table = np.full((len(rows), len(history)), math.nan)
    for column, report in enumerate(history):
        width = {image.index: image.width for image in report.images if image.width is not None}
        for row, index in enumerate(rows):
            table[row, column] = width.get(index, math.nan)
    axes.set_facecolor("#e5e5e5")
    shown = axes.imshow(table, aspect="auto", cmap="cividis", vmin=0, vmax=max(0.1, float(np.nanmax(table))))
    axes.set_xticks(range(len(history)), [str(report.epoch) for report in history], fontsize=7)
    axes.set_yticks(range(len(rows)), [str(index) for index in rows], fontsize=6)
    axes.set_ylabel("image", fontsize=8)
    axes.figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _ship(standing: RunStatus) -> str:
    told = []
    for how, choice, line in (("plain", standing.plain, "dotted"), ("guarded", standing.guarded, "dashed")):
        told.append(f"{how} epoch {choice.epoch} ({line})" if choice else f"{how}: none keeps the risk")
    return ", ".join(told)
