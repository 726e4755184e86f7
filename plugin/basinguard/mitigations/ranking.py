"""Who wins: every rival point that is safer than ours at no less utility, with a paired interval.

Utility is what is left of what was taught; where that cannot be measured alignment (`Point.utility`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core import stats
from ..core.estimate import Estimate
from ..core.schema import Schema
from .measure import Point
from .plain_cfg import PLAIN
from .registry import MITIGATIONS


class RivalWin(Schema):
    """A rival point that copies less than any of ours of at least its utility.

    Attributes:
        rival, intensity: which.
        ours, our_intensity: our safest point among those with at least the rival's utility; None when there is none.
        difference: our risk minus the rival's on the same pairs, clustered by prompt; above 0 the rival is safer.
        certain: whether the whole interval is above 0.
    """

    rival: str
    intensity: float
    ours: str | None = None
    our_intensity: float | None = None
    difference: Estimate | None = None
    certain: bool = False


class BestPoint(Schema):
    """Index of the point of one mitigation with the most utility at risk at most alpha; None without one."""

    mitigation: str
    point: int | None


def is_ours(point: Point) -> bool:
    """Whether a point belongs to this package's own mitigations."""
    return MITIGATIONS[point.mitigation].ours


def rival_wins(points: Sequence[Point], clusters: Sequence[int], threshold: float) -> list[RivalWin]:
    """Every rival point below our risk at equal or more utility, worst first; plain CFG is no rival.

    Args:
        points: all of one comparison.
        clusters: prompt of each pair.
        threshold: similarity from which a sample is a copy.
    """
    scored = [point for point in points if point.utility is not None]
    ours = [point for point in scored if is_ours(point)]
    rivals = [point for point in scored if not is_ours(point) and point.mitigation != PLAIN.name]
    wins = [_win(rival, ours, clusters, threshold) for rival in rivals]
    return sorted(filter(None, wins), key=lambda win: -(win.difference.value if win.difference else 1.0))


def _win(rival: Point, ours: Sequence[Point], clusters: Sequence[int], threshold: float) -> RivalWin | None:
    able = [p for p in ours if p.utility and rival.utility and p.utility.value >= rival.utility.value]
    if not able:
        return RivalWin(rival=rival.mitigation, intensity=rival.intensity)
    best = min(able, key=lambda p: p.risk.value)
    if best.risk.value <= rival.risk.value:
        return None
    gain = best.copied(threshold).astype(float) - rival.copied(threshold)
    difference = stats.cluster_bootstrap(gain, np.array(clusters))
    return RivalWin(
        rival=rival.mitigation,
        intensity=rival.intensity,
        ours=best.mitigation,
        our_intensity=best.intensity,
        difference=difference,
        certain=difference.low > 0,
    )


def best_within(points: Sequence[Point], alpha: float) -> list[BestPoint]:
    """For each mitigation, its point with the most utility (else the most similar to plain CFG) at risk <= alpha."""
    best = []
    for name in dict.fromkeys(point.mitigation for point in points):
        able = [i for i, p in enumerate(points) if p.mitigation == name and p.risk.value <= alpha]
        best.append(BestPoint(mitigation=name, point=max(able, key=lambda i: _merit(points[i]), default=None)))
    return best


def _merit(point: Point) -> float:
    return point.utility.value if point.utility else point.similarity_p95.value
