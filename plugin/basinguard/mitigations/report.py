"""The comparison for people: an HTML page that opens offline, with figure, tables and samples; a terminal's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.html import data_uri, figure_uri, render_template
from .comparison import Comparison
from .ranking import BestPoint, best_within
from .registry import MITIGATIONS
from .sample_strips import strip_path
from .tradeoff_figure import DPI, tradeoff

ALPHA = 0.1  # risk within which mitigations are compared in the first table


def render_comparison(comparison: Comparison, samples: Path) -> str:
    """The page.

    Args:
        comparison: what was measured.
        samples: folder of the strips, named after mitigation and intensity; a missing one is left out.
    """
    points = comparison.points
    return render_template(
        __package__,
        "comparison.html.jinja",
        comparison=comparison,
        settings=comparison.settings,
        mitigations=MITIGATIONS,
        figure=figure_uri(tradeoff(points), DPI) if any(point.utility for point in points) else "",
        scored=any(point.alignment for point in points),
        alpha=ALPHA,
        best=[_row(comparison, best, samples) for best in best_within(points, ALPHA)],
        points=points,
        pairs=len(comparison.clusters),
    )


def _row(comparison: Comparison, best: BestPoint, samples: Path) -> dict[str, Any]:
    point = None if best.point is None else comparison.points[best.point]
    least = min((p for p in comparison.points if p.mitigation == best.mitigation), key=lambda p: p.risk.value)
    strip = strip_path(samples, point or least)
    return {
        "mitigation": MITIGATIONS[best.mitigation],
        "point": point,
        "least": least,
        "cost": next((cost for cost in comparison.costs if cost.mitigation == best.mitigation), None),
        "strip": data_uri(strip.read_bytes()) if strip.is_file() else "",
    }


def comparison_table(comparison: Comparison, alpha: float = ALPHA) -> str:
    """The best point of each mitigation of risk at most alpha, for a terminal."""
    lines = [f"{'':15} {'intensity':>9} {'risk [95% interval]':24} {'sim p95':>8} {'utility':>10} {'UNet/img':>9}"]
    for best in best_within(comparison.points, alpha):
        if best.point is None:
            lines.append(f"{best.mitigation:15} no intensity has a risk of at most {alpha:.0%}")
            continue
        point = comparison.points[best.point]
        utility = f"{point.utility.value:.3f}" if point.utility else "-"
        lines.append(
            f"{point.mitigation:15} {point.intensity:9g} {point.risk.interval():24} "
            f"{point.similarity_p95.value:8.3f} {utility:>10} {point.unet_evals:9.1f}"
        )
    lines += [f"{skipped.mitigation:15} not run: {skipped.reason}" for skipped in comparison.skipped]
    lines += ["", comparison.settings.metric.definition]
    return "\n".join(lines)
