"""One look for every figure: colours that the colour-blind can tell apart (Okabe-Ito), axes, lines with their bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.estimate import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7f7f7f"
PURPLE, ORANGE, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
MARKERS = {BLUE: "^", VERMILLION: "o", GREEN: "s", GREY: "D"}  # lines are told apart without their colours as well
SIZE, CARD = (6.4, 3.8), (4.6, 2.9)  # inches of a figure on a page, and on a card of TensorBoard, 330 pixels wide
LIMIT = (0, (4, 2))  # dashes of a line that must not be crossed


def canvas(xlabel: str, ylabel: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure without pyplot's global state: safe inside someone else's training run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots()
    open_frame(axes)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def open_frame(axes: Axes) -> None:
    """No lines at the top and on the right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def banded_line(
    axes: Axes, x: Sequence[float], y: Sequence[Estimate | None], colour: str, label: str, markersize: float = 4
) -> None:
    """A line with the band of its intervals; it breaks where there is no estimate."""
    if not x:
        return
    value, low, high = zip(*((e.value, e.low, e.high) if e else (math.nan,) * 3 for e in y), strict=True)
    axes.plot(x, value, color=colour, marker=MARKERS.get(colour, "o"), markersize=markersize, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def whole_epochs(axes: Axes) -> None:
    """Ticks at whole numbers: there is no half of an epoch to look at."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def not_measured(axes: Axes) -> None:
    """Says so in the middle of an empty panel."""
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
