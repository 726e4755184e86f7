"""The frontier as pictures: what each rule and each strength copies, and what it keeps of the captions.

Colours are Okabe and Ito's; what is proven, tried and piloted is told apart by marker as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..calibration.candidate import RuleCandidate, StrengthCandidate
from ..calibration.terms import Setting
from ..core.estimate import Estimate
from ..core.record import Record, Transfer
from .style import BLACK, BLUE, GREEN, GREY, LIMIT, ORANGE, PURPLE, SKY, VERMILLION, banded_line, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTING_COLOURS = (BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK)


def frontier_figure(tried: Sequence[RuleCandidate], record: Record) -> Figure:
    """Risk against alignment of every rule that was tried; without alignment, against the transition."""
    measured = any(candidate.alignment for candidate in tried)
    goal = "agreement of image and caption" if measured else "transition (timestep at which guidance begins)"
    figure, axes = canvas(goal, "share of samples that copy")
    tested = list(dict.fromkeys(c.setting for c in tried if not c.pilot))
    pilot = [c for c in tried if c.pilot]
    axes.plot(*_points(pilot), ".", color=GREY, alpha=0.6, label="pilot, not promised") if pilot else None
    for colour, setting in zip(SETTING_COLOURS, tested, strict=False):
        _chain(axes, [c for c in tried if c.setting == setting and not c.pilot], setting, colour)
    axes.axhline(record.alpha, color=VERMILLION, linestyle=LIMIT, label=f"promised: at most {record.alpha:.0%}")
    if record.plain_alignment is not None:
        _cross(axes, record.plain_alignment, record.plain, VERMILLION, "plain CFG")
    axes.set(ylim=(-0.03, 1.03))
    axes.legend(fontsize=8, loc="best")
    axes.set_title("What each rule copies, and what it keeps", loc="left", fontsize=11)
    return figure


def quality_figure(tried: Sequence[RuleCandidate], record: Record) -> Figure:
    """Quality against alignment of the rules that were tested: what decided between the proven ones."""
    figure, axes = canvas("agreement of image and caption (right is better)", "kernel distance (lower is better)")
    tested = [c for c in tried if not c.pilot and c.quality and c.alignment]
    for colour, setting in zip(SETTING_COLOURS, dict.fromkeys(c.setting for c in tested), strict=False):
        for number, c in enumerate(c for c in tested if c.setting == setting):
            assert c.quality is not None
            assert c.alignment is not None
            label = str(setting) if number == 0 else ""
            _cross(axes, c.alignment, c.quality, colour, label, marker="o", face=colour if c.proven else "white")
            axes.annotate(
                f"{c.guidance.transition:g}", (c.alignment.value, c.quality.value), xytext=(5, 4),
                textcoords="offset points", fontsize=7,
            )  # fmt: skip
    if record.plain_alignment and record.plain_quality:
        _cross(axes, record.plain_alignment, record.plain_quality, VERMILLION, "plain CFG")
    if record.promise and record.alignment and record.quality:
        at = (record.alignment.value, record.quality.value)
        axes.plot(*at, "o", markersize=13, markerfacecolor="none", markeredgecolor="black", label="chosen")
    axes.legend(fontsize=8, loc="best")
    axes.set_title("Quality of each rule; filled = promised", loc="left", fontsize=11)
    return figure


def _chain(axes: Axes, chain: Sequence[RuleCandidate], setting: Setting, colour: str) -> None:
    x, y = _points(chain)
    axes.plot(x, y, color=colour, linewidth=1.2, alpha=0.7, label=str(setting))
    for candidate in chain:
        (at,), _ = _points([candidate])
        risk = candidate.risk
        face = colour if candidate.proven else "white"
        axes.errorbar(
            at, risk.value, yerr=[[risk.value - risk.low], [risk.high - risk.value]], color=colour, marker="o",
            markersize=5, markerfacecolor=face, capsize=2, elinewidth=0.8,
        )  # fmt: skip
        axes.annotate(
            f"{candidate.guidance.transition:g}",
            (at, risk.value),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=7,
        )


def _points(candidates: Sequence[RuleCandidate]) -> tuple[list[float], list[float]]:
    x = [c.alignment.value if c.alignment else c.guidance.transition for c in candidates]
    return x, [c.risk.value for c in candidates]


def strength_figure(tried: Sequence[StrengthCandidate], alpha: float) -> Figure:
    """Risk of plain CFG, and alignment where it was measured, against the strength of the fine-tune."""
    figure, axes = canvas("strength of the fine-tune (0 = base model, 1 = as trained)", "share")
    values = [point.strength for point in tried]
    banded_line(axes, values, [point.risk for point in tried], VERMILLION, "copies under plain CFG")
    scored = [point.alignment for point in tried if point.alignment is not None]
    if len(scored) == len(tried):
        banded_line(axes, values, scored, BLUE, "agreement of image and caption")
    axes.axhline(alpha, color=VERMILLION, linestyle=LIMIT, label=f"promised: at most {alpha:.0%}")
    proven = [point.strength for point in tried if point.proven]
    if proven:
        axes.axvline(max(proven), color=GREEN, linewidth=2, label=f"safe strength {max(proven):g}")
    axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.03))
    axes.legend(fontsize=8, loc="best")
    return figure


def _cross(axes: Axes, x: Estimate, y: Estimate, colour: str, label: str, *, marker: str = "X", face: str = "") -> None:
    axes.errorbar(
        x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]], yerr=[[y.value - y.low], [y.high - y.value]],
        color=colour, marker=marker, markersize=8 if marker == "X" else 5, markerfacecolor=face or colour, capsize=2,
        elinewidth=0.8, linestyle="none", label=label,
    )  # fmt: skip


def frontier_text(tried: Sequence[RuleCandidate]) -> str:
    """The rules that were tested, one line each, for a terminal."""
    measured = any(c.quality for c in tried)
    head = f"{'rule':32} {'from t':>6} {'risk [95% interval]':24} {'p':>7} {'alignment':>9} {'UNet/img':>8}"
    lines = [head + (f" {'distance [95% interval]':24}" if measured else "")]
    for c in tried:
        if c.pilot:
            continue
        alignment = f"{c.alignment.value:.3f}" if c.alignment else "-"
        quality = f" {c.quality.interval() if c.quality else '-':24}" if measured else ""
        lines.append(
            f"{c.setting!s:32} {c.guidance.transition:6g} {c.risk.interval():24} {c.p_value:7.2g} {alignment:>9} "
            f"{c.evals_per_sample:8.1f}{quality}   {'promised' if c.proven else 'not proven'}"
        )
    return "\n".join(lines)


def strength_text(tried: Sequence[StrengthCandidate]) -> str:
    """The strengths that were tested, one line each, for a terminal."""
    lines = [f"{'strength':8} {'risk [95% interval]':24} {'p':>7} {'alignment':>9}"]
    for point in tried:
        alignment = f"{point.alignment.value:.3f}" if point.alignment else "-"
        verdict = "promised" if point.proven else "not proven"
        lines.append(f"{point.strength:8g} {point.risk.interval():24} {point.p_value:7.2g} {alignment:>9}   {verdict}")
    return "\n".join(lines)


def transfer_text(table: Sequence[Transfer]) -> str:
    """The transfer table, for a terminal."""
    lines = [f"{'sampler':32} {'steps':>5} {'from t':>6} {'sigma':>7} {'risk [95% interval]':24} {'alignment':>9}"]
    for row in table:
        where = "never" if row.transition is None else f"{row.transition:.0f}"
        sigma = "-" if row.sigma is None else f"{row.sigma:.3g}"
        alignment = f"{row.alignment.value:.3f}" if row.alignment else "-"
        lines.append(
            f"{row.scheduler:32} {row.timesteps:5} {where:>6} {sigma:>7} {row.risk.interval():24} {alignment:>9}"
        )
    return "\n".join(lines)
