"""Images unlike the rest, captions unlike their image, and images on both sides of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.images import open_image, to_rgb, to_tensor
from .duplicates import Pair
from .findings import Finding
from .nearest_neighbours import nearest_neighbours
from .scan import Scan

NEIGHBOURS = 5
FEWEST = 20  # images; fewer have no "rest" to be unlike of
CUT = 3.5  # robust standard deviations; Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993)
CLIP_SIDE = 336  # pixels; CLIP models look at 224 to 336
CLIP_BATCH = 32


class Scorer(Protocol):
    """Scores pairs of image and caption, such as `similarity.clip_score.ClipScore`."""

    @property
    def name(self) -> str:
        """Architecture and weights."""
        ...

    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """Cosine similarity of each image [B, 3, H, W] in [0, 1] and its caption, [B]."""
        ...


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
    values, _ = nearest_neighbours(vectors, vectors, k=NEIGHBOURS, skip_self=True)
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
    """Pairs of one picture with one image below `train`, the size of the training set, and one at or above it."""
    return [pair for pair in pairs if pair.same and pair.first < train <= pair.second]


def caption_scores(scan: Scan, scorer: Scorer) -> dict[int, float]:
    """The score of every image that has a caption, by its index; the caption alone, not its variants."""
    rows = [row for row, item in enumerate(scan.items) if item.caption]
    scores: dict[int, float] = {}
    for start in range(0, len(rows), CLIP_BATCH):
        part = rows[start : start + CLIP_BATCH]
        images = torch.stack([_load(scan, row) for row in part])
        values = scorer.score(images, [scan.items[row].caption for row in part])
        scores.update(zip(part, values.tolist(), strict=True))
    return scores


def _load(scan: Scan, row: int) -> Tensor:
    with open_image(scan.items[row].path) as image:
        return to_tensor(to_rgb(image).resize((CLIP_SIDE, CLIP_SIDE)))


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
        if score > CUT
    }


def _robust_scores(values: np.ndarray) -> np.ndarray:
    """How many robust standard deviations each value lies below the median, [N]."""
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return (middle - values) / spread if spread > 0 else np.zeros_like(values)
