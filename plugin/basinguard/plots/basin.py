"""The basin as curves: how it looks at one time, and how it grows over the epochs, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.estimate import Estimate
from ..core.report import Report
from ..core.text import epoch_name
from .style import BLUE, GREEN, GREY, SIZE, VERMILLION, banded_line, canvas, open_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(reports: Sequence[Report], size: tuple[float, float] = SIZE) -> Figure:
    """P(memorized | transition = t), the base in grey, later epochs ever darker, the last with its band."""
    figure, axes = canvas("guidance on from timestep t (999 = the start)", "share that copies", size)
    reports = [report for report in reports if report.basin.curve]
    if not reports:
        return figure
    shades = np.linspace(0.25, 1.0, len(reports))
    last = reports[-1]
    for k, (shade, report) in enumerate(zip(shades, reports, strict=True)):
        t, values = zip(*((timestep, estimate.value) for timestep, estimate in report.basin.curve), strict=True)
        style: dict[str, Any] = {"color": BLUE, "alpha": float(shade)}
        if report.epoch < 0:
            style = {"color": GREY, "linestyle": "--", "label": "base model"}
        elif k == len(reports) // 2 and report is not last:
            style["label"] = "earlier epochs, lighter"
        axes.step(t, values, where="post", **style)
    t, low, high = zip(*((timestep, e.low, e.high) for timestep, e in last.basin.curve), strict=True)
    band = f"{epoch_name(last.epoch)}, 95% band"
    axes.fill_between(t, low, high, step="post", color=BLUE, alpha=0.15, linewidth=0, label=band)
    axes.set(xlim=(0, 999), ylim=(-0.02, 1.02))
    axes.legend(frameon=False, loc="upper left")
    return figure


def history_figure(reports: Sequence[Report], size: tuple[float, float] = SIZE) -> Figure:
    """Risk of plain CFG, basin width and the rise of the gap over the epochs, with intervals.

    The gap has an axis of its own: it is what every probe measures, also one whose budget bought no samples.
    """
    figure, axes = canvas("epochs trained (0 = base model)", "share", size)
    banded_line(axes, *_over_epochs(reports, "risk"), VERMILLION, "risk under plain CFG")
    banded_line(axes, *_over_epochs(reports, "width"), BLUE, "basin width")
    banded_line(axes, *_over_epochs(reports, "risk_uncond"), GREEN, "risk of the empty prompt")
    axes.set(ylim=(-0.02, 1.02), xticks=[report.epoch + 1 for report in reports])
    lines, names = axes.get_legend_handles_labels()
    if any(report.gaps.since_base for report in reports):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.set_ylabel("gap: rise since the base model")
        banded_line(right, *_over_epochs(reports, "gap_since_base"), GREY, "gap (right axis)")
        lines, names = lines + right.get_legend_handles_labels()[0], [*names, "gap (right axis)"]
    axes.legend(lines, names, frameon=False, loc="upper left")
    return figure


def warning_figure(reports: Sequence[Report]) -> Figure:
    """What warns before the first copy: risk, width, gap and critical scale over the updates, each with its interval.

    Gap and critical scale are shown as the rise since the base model less that of held-out captions; an alarm is
    raised where the interval leaves 0. A dotted line marks the first report with a copied sample.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.2), dpi=120, layout="constrained")
    panels = {
        "risk under plain CFG": ("risk", VERMILLION),
        "basin width": ("width", BLUE),
        "gap: rise beyond held-out captions": ("gap_excess", GREEN),
        "log critical scale: rise beyond held-out images": ("sigma_c_excess", BLUE),
    }
    copied = (r.train_step for r in reports if r.samples.own_risk is not None and r.samples.own_risk.value > 0)
    first = next(copied, None)
    for axes, (title, (name, colour)) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
        measured = [(r.train_step, r.estimates[name]) for r in reports if name in r.estimates]
        banded_line(axes, [update for update, _ in measured], [estimate for _, estimate in measured], colour, "")
        axes.axhline(0, color=GREY, linewidth=0.8)
        if first is not None:
            axes.axvline(first, color=GREY, linestyle=":", linewidth=1.2)
        axes.set_title(title, fontsize=9)
        open_frame(axes)
    figure.supxlabel("updates (0 = base model; dotted: first copied sample)", fontsize=9)
    return figure


def _over_epochs(reports: Sequence[Report], name: str) -> tuple[list[int], list[Estimate | None]]:
    """Epochs and values of what was measured; None stays where a probe failed, so that the line breaks there."""
    points = [(r.epoch, r.estimates.get(name)) for r in reports if name in r.estimates or r.problem]
    return [epoch + 1 for epoch, _ in points], [value for _, value in points]
