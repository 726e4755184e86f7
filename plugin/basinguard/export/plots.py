"""The two pictures of a model card. Colours are Okabe and Ito's, told apart by marker and dash as well.

Source: Okabe and Ito, "Color Universal Design" (2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..records import Estimate, Record, Report

BLUE, PALE, RED, GREY, INK = "#0072B2", "#9CC6DE", "#D55E00", "#8C8C8C", "#222222"
STYLE = {
    "font.size": 11, "axes.titlesize": 12.5, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#E4E4E4", "legend.frameon": False, "legend.fontsize": 10.5, "lines.linewidth": 2.0,
}  # fmt: skip
BASIN, HISTORY = "basin.png", "history.png"


def write_plots(folder: Path, record: Record) -> list[str]:
    """Writes the plots the record has numbers for and returns their file names.

    `basin.png`: chance of a copy against the timestep at which guidance begins. `history.png`: risk and basin width
    of every epoch.
    """
    import matplotlib as mpl

    names = []
    with mpl.rc_context(STYLE):
        if any(report.curve for report in record.history):
            _save(_basin(record), folder / BASIN)
            names.append(BASIN)
        measured = [report for report in record.history if not report.problem]
        if measured:
            _save(_history(record.history, measured[0].risk), folder / HISTORY)
            names.append(HISTORY)
    return names


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})


def _figure(height: float, rows: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def _basin(record: Record) -> Any:
    figure, (axes,) = _figure(4.0, 1)
    shown = [report for report in record.history if report.curve]
    *earlier, last = shown
    for report in earlier:
        base = report.epoch < 0
        color, dash, label = (
            (GREY, "--", "base model") if base else (PALE, "-", f"earlier, to epoch {earlier[-1].epoch}")
        )
        first = base or report is earlier[-1]
        _curve(
            axes, report, color=color, linestyle=dash, label=label if first else None, linewidth=1.8 if base else 1.2
        )
    _curve(axes, last, color=BLUE, marker="o", markersize=4, label=f"{_epoch(last)} (band: {_level(last.curve[0][1])})")
    band = [(t, e.low, e.high) for t, e in last.curve]
    axes.fill_between(*zip(*band, strict=True), color=BLUE, alpha=0.15, linewidth=0)
    _mark(axes, record)
    axes.set(xlim=(1010, -10), ylim=(-0.03, 1.03), ylabel="share of samples that are copies")
    axes.set_xlabel("timestep at which guidance begins  (sampling runs left to right, noise to image)")
    axes.set_title("How late guidance must begin to miss the training images")
    axes.legend(loc="upper right")
    return figure


def _curve(axes: Any, report: Report, **style: Any) -> None:
    axes.plot([t for t, _ in report.curve], [e.value for _, e in report.curve], **style)


def _mark(axes: Any, record: Record) -> None:
    rule = record.guidance
    axes.axvline(rule.transition, color=RED, linewidth=2, linestyle=(0, (4, 2)))
    axes.annotate(
        f" transition t = {rule.transition:g}\n $\\sigma$ = {rule.sigma:.3g}",
        (rule.transition, 0.5), color=RED, fontsize=10.5,
        xytext=(4, 0), textcoords="offset points", ha="left" if rule.transition > 250 else "right",
    )  # fmt: skip


def _history(history: Sequence[Report], first: Estimate | None) -> Any:
    figure, (risk, width) = _figure(5.0, 2)
    epochs = [report.epoch for report in history]
    _series(risk, epochs, [r.risk for r in history], color=RED, marker="o", label="ordinary guidance from the start")
    empty = [r.risk_uncond for r in history]
    _series(risk, epochs, empty, color=GREY, marker="s", linestyle="--", label="no prompt at all")
    _series(width, epochs, [r.width for r in history], color=BLUE, marker="o", label=None)
    risk.set(ylim=(-0.03, 1.03), ylabel="share of copies")
    risk.set_title(f"Copies of training images (bars: {_level(first)})")
    risk.legend(loc="best")
    width.set(ylim=(-0.03, 1.03), ylabel="basin width (0 to 1)", xlabel="epoch")
    width.set_title("Width of the basin they pull from")
    ticks = epochs if len(epochs) <= 12 else epochs[:: -(-len(epochs) // 12)]
    width.set_xticks(ticks, ["base" if epoch < 0 else str(epoch) for epoch in ticks])
    return figure


def _series(axes: Any, epochs: list[int], estimates: Sequence[Estimate | None], **style: Any) -> None:
    """Points with error bars; there is none where a probe failed."""
    values = [e.value if e else math.nan for e in estimates]
    below = [max(0.0, e.value - e.low) if e else math.nan for e in estimates]
    above = [max(0.0, e.high - e.value) if e else math.nan for e in estimates]
    axes.errorbar(epochs, values, yerr=[below, above], capsize=3, elinewidth=1.2, markersize=5, **style)


def _epoch(report: Report) -> str:
    return "base model" if report.epoch < 0 else f"epoch {report.epoch}"


def _level(estimate: Estimate | None) -> str:
    return f"{estimate.level:.0%} interval" if estimate else "intervals"
