"""Trade-off of risk, and similarity, against utility (what is left of what was taught first); ours on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.estimate import Estimate
from ..plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, open_frame
from .measure import Point
from .ranking import is_ours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = {
    "ours": VERMILLION,
    "ours-strength": ORANGE,
    "ours-base-led": BLUE,
    "ours-anchored": GREEN,
    "ours-triage": PURPLE,
    "ours-filter": SKY,
    "ours-schedule": BLACK,
}
DPI = 110
MARKERS = "osv^<>DPX*ph"
LEAST_UTILITY = 0.6  # of the best utility: what keeps less lies left of the panels, which say how many points do


def tradeoff(points: Sequence[Point]) -> Figure:
    """Two panels over utility: the share that copies, and the 95th percentile of similarity.

    Raises:
        ValueError: no point has any utility.
    """
    from matplotlib.figure import Figure

    scored = [point for point in points if point.utility is not None]
    if not scored:
        raise ValueError(
            "nothing that is kept was measured, so there is no trade-off to draw; give --base, --alignment or --heldout"
        )
    figure = Figure(figsize=(12, 6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, scored, lambda p: p.risk, "share that copies a training image")
    _panel(right, scored, lambda p: p.similarity_p95, "similarity to the nearest training image, 95th percentile")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, points: Sequence[Point], pick: Callable[[Point], Estimate], label: str) -> None:
    from matplotlib import colormaps

    names = list(dict.fromkeys(point.mitigation for point in points))
    rivals = [name for name in names if not OURS.get(name)]
    for name in [*rivals, *(name for name in names if OURS.get(name))]:
        curve = [p for p in points if p.mitigation == name and p.utility]
        x, y = [p.utility.value for p in curve if p.utility], [pick(p) for p in curve]
        rank = rivals.index(name) if name in rivals else 0
        style: dict[str, Any] = (
            {"color": OURS[name], "linewidth": 2.4, "zorder": 5, "marker": "o", "markersize": 6}
            if is_ours(curve[0])
            else {
                "color": colormaps["tab20"](rank % 20),
                "linewidth": 1,
                "alpha": 0.8,
                "marker": MARKERS[rank % len(MARKERS)],
                "markersize": 5,
            }
        )
        axes.plot(x, [e.value for e in y], label=name, **style)
        if is_ours(curve[0]):
            axes.errorbar(
                x,
                [e.value for e in y],
                yerr=[[e.value - e.low for e in y], [e.high - e.value for e in y]],
                fmt="none",
                ecolor=OURS[name],
                alpha=0.35,
            )
    axes.set(xlabel=f"{points[0].utility_name} → better", ylabel=f"{label} → worse")
    _crop(axes, [p.utility.value for p in points if p.utility])
    open_frame(axes)


def _crop(axes: Axes, utilities: Sequence[float]) -> None:
    """Leaves the place to the mitigations that keep most of the utility."""
    left = LEAST_UTILITY * max(utilities)
    beyond = sum(value < left for value in utilities)
    if beyond and left > 0:
        axes.set_xlim(left=left)
        label = f"← {beyond} more, below {LEAST_UTILITY:.0%} of the best"
        axes.text(0.0, 1.01, label, transform=axes.transAxes, va="bottom", fontsize=8, color="0.35")
