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
from .ranking import within
from .registry import METHODS

DASH = "\N{EN DASH}"
BUDGET = 0.1  # risk within which methods are compared in the first table


def render(result: Comparison, samples: Path) -> str:
    """The page.

    Args:
        result: the comparison.
        samples: folder of the strips, named after method and strength; a missing one is left out.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, interval=interval)
    template = environment.from_string(files(__package__).joinpath("comparison.html.jinja").read_text("utf-8"))
    costs = {cost.method: cost for cost in result.costs}
    return template.render(
        result=result,
        settings=result.settings,
        methods=METHODS,
        figure=_figure(result),
        subject=any(point.fidelity for point in result.points),
        scored=any(point.alignment for point in result.points),
        budget=BUDGET,
        best=[_row(result, entry.method, entry.point, costs, samples) for entry in within(result.points, BUDGET)],
        points=result.points,
        costs=costs,
        pairs=len(result.clusters),
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits after the point, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """An estimate with its interval, or a dash."""
    if estimate is None:
        return DASH
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _row(result: Comparison, name: str, index: int | None, costs: dict[str, Cost], samples: Path) -> dict[str, Any]:
    point: Point | None = None if index is None else result.points[index]
    every = [p for p in result.points if p.method == name]
    least = min(every, key=lambda p: p.risk.value)
    return {
        "method": METHODS[name],
        "point": point,
        "least": least,
        "cost": costs.get(name),
        "strip": _picture(samples / f"{name}_{(point or least).strength:g}.png"),
    }


def _figure(result: Comparison) -> str:
    from .tradeoff_figure import tradeoff

    if not any(point.utility for point in result.points):
        return ""
    buffer = io.BytesIO()
    tradeoff(result.points).savefig(buffer, format="png")
    return _uri(buffer.getvalue())


def _picture(path: Path) -> str:
    return _uri(path.read_bytes()) if path.is_file() else ""


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
