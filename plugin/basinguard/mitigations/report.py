"""The comparison for people: one HTML file that opens offline, with figure, tables and samples."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.estimate import Estimate
from .comparison import Comparison
from .costs import Cost
from .measure import Point
from .ranking import BestPoint, best_within
from .registry import MITIGATIONS
from .sample_strips import strip_path
from .tradeoff_figure import tradeoff

DASH = "\N{EN DASH}"
ALPHA = 0.1  # risk within which mitigations are compared in the first table


def render(comparison: Comparison, samples: Path) -> str:
    """The page.

    Args:
        comparison: what was measured.
        samples: folder of the strips, named after mitigation and intensity; a missing one is left out.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, interval=interval)
    template = environment.from_string(files(__package__).joinpath("comparison.html.jinja").read_text("utf-8"))
    costs = {cost.mitigation: cost for cost in comparison.costs}
    return template.render(
        comparison=comparison,
        settings=comparison.settings,
        mitigations=MITIGATIONS,
        figure=_figure(comparison),
        subject=any(point.fidelity for point in comparison.points),
        scored=any(point.alignment for point in comparison.points),
        alpha=ALPHA,
        best=[_row(comparison, best, costs, samples) for best in best_within(comparison.points, ALPHA)],
        points=comparison.points,
        costs=costs,
        pairs=len(comparison.clusters),
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """An estimate with its interval, or a dash."""
    if estimate is None:
        return DASH
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _row(comparison: Comparison, best: BestPoint, costs: dict[str, Cost], samples: Path) -> dict[str, Any]:
    point: Point | None = None if best.point is None else comparison.points[best.point]
    curve = [p for p in comparison.points if p.mitigation == best.mitigation]
    least = min(curve, key=lambda p: p.risk.value)
    return {
        "mitigation": MITIGATIONS[best.mitigation],
        "point": point,
        "least": least,
        "cost": costs.get(best.mitigation),
        "strip": _picture(strip_path(samples, point or least)),
    }


def _figure(comparison: Comparison) -> str:
    if not any(point.utility for point in comparison.points):
        return ""
    buffer = io.BytesIO()
    tradeoff(comparison.points).savefig(buffer, format="png")
    return _uri(buffer.getvalue())


def _picture(path: Path) -> str:
    return _uri(path.read_bytes()) if path.is_file() else ""


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def table(comparison: Comparison, alpha: float = ALPHA) -> str:
    """The best point of each mitigation of risk at most alpha, for a terminal."""
    lines = [f"{'':15} {'intensity':>9} {'risk [95% interval]':24} {'sim p95':>8} {'utility':>10} {'UNet/img':>9}"]
    for entry in best_within(comparison.points, alpha):
        if entry.point is None:
            lines.append(f"{entry.mitigation:15} no intensity has a risk of at most {alpha:.0%}")
            continue
        point = comparison.points[entry.point]
        utility = f"{point.utility.value:.3f}" if point.utility else "-"
        lines.append(
            f"{point.mitigation:15} {point.intensity:9g} {interval(point.risk):24} "
            f"{point.similarity_p95.value:8.3f} {utility:>10} {point.unet_evals:9.1f}"
        )
    lines += [f"{entry.mitigation:15} not run: {entry.reason}" for entry in comparison.skipped]
    return "\n".join(lines)
