"""The two pictures of a model card: those of the training run, with the shipped transition drawn in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.record import Record
from ..plots.basin import curve_figure, history_figure
from ..plots.style import LIMIT, VERMILLION
from .layout import BASIN_PLOT, HISTORY_PLOT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plots(folder: Path, record: Record) -> list[str]:
    """Writes the plots the record has numbers for and returns their file names.

    `basin.png`: chance of a copy against the timestep at which guidance begins. `history.png`: risk and basin width
    of every epoch.
    """
    curves = [report for report in record.history if report.basin.curve]
    figures = {BASIN_PLOT: basin_plot(record)} if curves else {}
    if any(not report.problem for report in record.history):
        figures[HISTORY_PLOT] = history_figure(record.history)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=200, facecolor="white", metadata={"Software": None})
    return list(figures)


def basin_plot(record: Record) -> Figure:
    """The curves of a training run, with the transition that ships; plain CFG has none."""
    figure = curve_figure(record.history)
    if record.guidance.plain:
        return figure
    at, sigma = record.guidance.transition, record.guidance.sigma
    (axes,) = figure.axes
    axes.axvline(at, color=VERMILLION, linewidth=2, linestyle=LIMIT)
    left = at > 700  # no room on the right
    axes.annotate(
        f"transition {at:g}\n$\\sigma$ = {sigma:.3g}",
        (at, 1),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        color=VERMILLION,
    )
    return figure
