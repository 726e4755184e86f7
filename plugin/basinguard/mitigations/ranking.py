"""Who wins, said plainly: every rival point that is safer than ours at no less utility, with a paired interval.

Utility is alignment; where no model scores it, fidelity to the subject (`Point.utility`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core import stats
from ..core.estimate import Estimate
from ..core.schema import Schema
from .measure import Point
from .registry import METHODS

PLAIN = "none"  # no rival: everything is measured against it


class Beaten(Schema):
    """A rival point that copies less than any of ours of at least its utility.

    Attributes:
        rival, strength: which.
        ours, our_strength: our safest point among those with at least the rival's utility; None when there is none.
        difference: our risk minus the rival's on the same pairs, clustered by prompt; above 0 the rival is safer.
        certain: whether the whole interval is above 0.
    """

    rival: str
    strength: float
    ours: str | None
    our_strength: float | None
    difference: Estimate | None
    certain: bool


class Best(Schema):
    """The point of one method with the most utility among those whose risk is within the budget; None without one."""

    method: str
    point: int | None


def is_ours(point: Point) -> bool:
    """Whether a point belongs to this package's own methods."""
    return METHODS[point.method].ours


def beaten(points: Sequence[Point], clusters: Sequence[int], threshold: float) -> list[Beaten]:
    """Every rival point below our risk at equal or more utility, worst first.

    Args:
        points: all of one comparison.
        clusters: prompt of each pair.
        threshold: similarity from which a sample is a copy.
    """
    scored = [point for point in points if point.utility is not None]
    ours = [point for point in scored if is_ours(point)]
    found = [
        _against(rival, ours, clusters, threshold) for rival in scored if not is_ours(rival) and rival.method != PLAIN
    ]
    kept = [entry for entry in found if entry is not None]
    return sorted(kept, key=lambda e: -(e.difference.value if e.difference else 1.0))


def _against(rival: Point, ours: Sequence[Point], clusters: Sequence[int], threshold: float) -> Beaten | None:
    able = [p for p in ours if p.utility and rival.utility and p.utility.value >= rival.utility.value]
    if not able:
        return Beaten(
            rival=rival.method, strength=rival.strength, ours=None, our_strength=None, difference=None, certain=False
        )
    best = min(able, key=lambda p: p.risk.value)
    if best.risk.value <= rival.risk.value:
        return None
    gain = best.copied(threshold).astype(float) - rival.copied(threshold)
    difference = stats.cluster_bootstrap(gain, np.array(clusters))
    return Beaten(
        rival=rival.method,
        strength=rival.strength,
        ours=best.method,
        our_strength=best.strength,
        difference=difference,
        certain=difference.low > 0,
    )


def within(points: Sequence[Point], budget: float) -> list[Best]:
    """For each method, its point with the most utility (else the most similar to plain CFG) at risk <= `budget`."""
    found = []
    for name in dict.fromkeys(point.method for point in points):
        able = [i for i, p in enumerate(points) if p.method == name and p.risk.value <= budget]
        best = max(able, key=lambda i: _merit(points[i]), default=None)
        found.append(Best(method=name, point=best))
    return found


def _merit(point: Point) -> float:
    return point.utility.value if point.utility else point.similarity_p95.value
