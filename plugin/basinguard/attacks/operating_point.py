"""True positives at a fixed share of false positives, with exact intervals, or why that cannot be told."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..core.estimate import Estimate
from ..core.stats import clopper_pearson


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on a score, and what lies above it.

    Attributes:
        threshold: images above it are called members.
        hits: share of members above it.
        false: share of held-out images above it.
    """

    threshold: float
    hits: Estimate
    false: Estimate


def controls_needed(share: float) -> int:
    """Held-out images that can resolve a share of false positives: with fewer, one of them is more than that.

    Example:
        >>> controls_needed(0.01)
        100
    """
    return math.ceil(1 / share - 1e-9)


def operating_point(
    members: ArrayLike, controls: ArrayLike, share: float = 0.01, level: float = 0.95
) -> OperatingPoint:
    """The lowest threshold with at most `share` of the controls above it, and the members above it.

    Raises:
        ValueError: no members, or too few controls; says how many it takes.

    Source: Carlini et al., arXiv 2112.03570 (true positives at low false-positive rates); exact intervals: Clopper and
    Pearson, Biometrika 26 (1934).
    """
    m, c = np.asarray(members, float), np.sort(np.asarray(controls, float))[::-1]
    if not len(m) or len(c) < controls_needed(share):
        raise ValueError(
            f"{len(m)} members and {len(c)} held-out images: true positives at {share:.0%} false positives need "
            f"at least 1 and {controls_needed(share)}, because one of {len(c)} is already "
            f"{1 / max(len(c), 1):.1%}"
        )
    threshold = float(c[min(math.floor(share * len(c) + 1e-9), len(c) - 1)])
    above, wrong = int((m > threshold).sum()), int((c > threshold).sum())
    return OperatingPoint(threshold, clopper_pearson(above, len(m), level), clopper_pearson(wrong, len(c), level))
