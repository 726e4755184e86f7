"""A set of images as points on a page: the two directions in which their embeddings vary most.

Source: Hotelling, "Analysis of a complex of statistical variables into principal components" (1933).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.html import data_uri
from ..core.text import printable
from .decisions import Decision

DIGITS = 4  # of a position; so two runs agree to the byte
MOST_POINTS = 5000  # beyond, the riskiest are drawn
MOST_PICTURES = 2000  # about 4 MB of page
SIDE = 64  # pixels of a point's picture


@dataclass(frozen=True)
class Point:
    """One image on the map.

    Attributes:
        name, sha256: which image.
        x, y: where, 0 to 1, down the page.
        risk: its risk index, for its colour.
        group: number of its group of copies from 1, 0 for a picture that occurs once; likewise a colour.
        dropped: it is proposed to be left out.
        image: a small picture as a data URI; "" where there is none.
    """

    name: str
    sha256: str
    x: float
    y: float
    risk: float
    group: int
    dropped: bool
    image: str


def map_positions(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Principal components of vectors [N, D], the larger horizontal, [N, 2] in [0, 1]; one scale for both.

    Example:
        >>> map_positions(np.array([[0, 0], [4, 0], [0, 2], [4, 2]], np.float32)).tolist()
        [[0.0, 0.25], [1.0, 0.25], [0.0, 0.75], [1.0, 0.75]]
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    if len(centred) < centred.shape[1]:  # of few vectors the smaller problem, with the same answer
        axes = np.linalg.svd(centred, full_matrices=False)[2].T[:, :2]
    else:
        axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])  # a direction has no sign of its own
    places = np.pad(centred @ axes, ((0, 0), (0, 2 - axes.shape[1])))
    low, high = places.min(0), places.max(0)
    scale = max(float((high - low).max()), 1e-9)
    return np.round((places - (low + high) / 2) / scale + 0.5, DIGITS) + 0.0


def map_points(
    decisions: Sequence[Decision],
    positions: Sequence[tuple[float, float]],
    thumbs: NDArray[np.uint8],
    aspects: NDArray[np.float32],
) -> list[Point]:
    """Points of a page, the riskiest last, so that they lie on top.

    Args:
        decisions: what was found about each image.
        positions: of `map_positions`.
        thumbs: squashed thumbnails, uint8 [N, 64, 64, 3].
        aspects: width over height of each.
    """
    order = sorted(range(len(decisions)), key=lambda row: (-decisions[row].risk, decisions[row].file_name))
    points = [
        Point(
            printable(decisions[row].file_name),
            decisions[row].sha256,
            *positions[row],
            decisions[row].risk,
            0 if (group := decisions[row].group) is None else group + 1,
            decisions[row].action == "drop",
            _picture(thumbs[row], float(aspects[row])) if place < MOST_PICTURES else "",
        )
        for place, row in enumerate(order[:MOST_POINTS])
    ]
    return points[::-1]


def _picture(thumb: NDArray[np.uint8], aspect: float) -> str:
    width, height = (SIDE, round(SIDE / aspect)) if aspect > 1 else (round(SIDE * aspect), SIDE)
    buffer = io.BytesIO()
    Image.fromarray(thumb).resize((max(1, width), max(1, height))).save(buffer, "jpeg", quality=70)
    return data_uri(buffer.getvalue(), "jpeg")
