"""Images unlike the rest, and images on both sides of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from .duplicates import Pair
from .findings import Finding
from .nearest_neighbours import nearest

NEIGHBOURS = 5
FEWEST = 20  # images; fewer have no "rest" to be unlike of
CUT = 3.5  # robust standard deviations; Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993)
DISAGREES = 3.5


def find_outliers(vectors: Tensor, *, name: str) -> dict[int, Finding]:
    """Images whose five nearest neighbours are much farther away than is usual in this set.

    Such an image is held after a single copy: what a critical scale measures grows with the distance to the rest far
    more than with the number of copies.

    Args:
        vectors: unit vectors [N, D]; fewer than 20 give no outliers.
        name: of the embedder, because a distance means nothing without it.
    """
    if len(vectors) < FEWEST:
        return {}
    values, _ = nearest(vectors, vectors, k=NEIGHBOURS, skip_self=True)
    closeness = values.mean(1).astype(np.float64)
    return {
        row: Finding(
            code="outlier",
            message=f"similarity {closeness[row]:.2f} to its {NEIGHBOURS} nearest, "
            f"usual here {np.median(closeness):.2f} ({score:.1f} robust deviations, {name})",
            weight=0.5,
        )
        for row, score in enumerate(_robust_scores(closeness))
        if score > CUT
    }


def find_leaks(pairs: Sequence[Pair], train: int) -> list[Pair]:
    """Pairs with one image below `train`, the size of the training set, and one held-out image at or above it."""
    return [pair for pair in pairs if pair.first < train <= pair.second]


def find_disagreements(scores: Mapping[int, float], *, name: str) -> dict[int, Finding]:
    """Images that agree with their caption much less than is usual in this set, from CLIP scores by image."""
    if len(scores) < FEWEST:
        return {}
    rows = sorted(scores)
    values = np.array([scores[row] for row in rows])
    return {
        row: Finding(
            code="caption-disagrees",
            message=f"agrees with its caption at {value:.2f}, usual here {np.median(values):.2f} ({name})",
        )
        for row, value, score in zip(rows, values, _robust_scores(values), strict=True)
        if score > DISAGREES
    }


def _robust_scores(values: np.ndarray) -> np.ndarray:
    """How many robust standard deviations each value lies below the median, [N]."""
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return (middle - values) / spread if spread > 0 else np.zeros_like(values)
