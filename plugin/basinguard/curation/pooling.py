"""Neighbourhoods of pixels: the highest and lowest beside each, and means of squares.

Plain array operations: on pictures of a few hundred pixels they take a fifth of what a tensor library needs for them.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .colour_match import Pixels

Cells = TypeVar("Cells", bound=np.generic)


def highest(picture: NDArray[Cells]) -> NDArray[Cells]:
    """The largest value within one pixel of each, in any direction, of [H, W] or [H, W, C]."""
    return _beside(picture, np.maximum)


def lowest(picture: NDArray[Cells]) -> NDArray[Cells]:
    """The smallest value within one pixel of each, in any direction, of [H, W] or [H, W, C]."""
    return _beside(picture, np.minimum)


def _beside(picture: NDArray[Cells], choose: np.ufunc) -> NDArray[Cells]:
    down = picture.copy()
    choose(down[1:], picture[:-1], out=down[1:])
    choose(down[:-1], picture[1:], out=down[:-1])
    chosen = down.copy()
    choose(chosen[:, 1:], down[:, :-1], out=chosen[:, 1:])
    choose(chosen[:, :-1], down[:, 1:], out=chosen[:, :-1])
    return chosen


def widest(picture: NDArray[Cells]) -> NDArray[Cells]:
    """The largest of the three channels of [..., 3]; a reduction over so short an axis takes ten times as long."""
    return np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])


def pooled(picture: Pixels, factor: int) -> Pixels:
    """Means over squares of `factor` pixels of [H, W] or [H, W, C]; those at the right and bottom may be smaller."""
    down = _sums(picture, factor)
    sums = _sums(down.swapaxes(0, 1), factor).swapaxes(0, 1)
    heights, widths = (
        np.diff(np.append(np.arange(0, length, factor), length)).astype(np.float32) for length in picture.shape[:2]
    )
    counts = heights[:, None] * widths
    return sums / counts.reshape(counts.shape + (1,) * (picture.ndim - 2))


def _sums(values: Pixels, factor: int) -> Pixels:
    """Sums over runs of `factor` rows, the last of which may be shorter."""
    sums = values[::factor].copy()
    for first in range(1, factor):  # adding slices is far faster than a sum along a short axis
        part = values[first::factor]
        sums[: len(part)] += part
    return sums


def spread_out(cells: NDArray[Cells], factor: int, shape: tuple[int, ...]) -> NDArray[Cells]:
    """The value of its cell [h, w] at each pixel [H, W]; the other way round from `pooled`."""
    return cells.repeat(factor, 0).repeat(factor, 1)[: shape[0], : shape[1]]


def even_edges(length: int, side: int) -> NDArray[np.int64]:
    """Where a length is cut into pieces of about `side`, none of them much smaller, both ends included."""
    return np.linspace(0, length, max(1, length // side) + 1).round().astype(np.int64)


def block_means(picture: Pixels, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Pixels:
    """Means of [H, W] or [H, W, C] over the blocks between the given edges."""
    sums = np.add.reduceat(np.add.reduceat(picture, rows[:-1], 0), columns[:-1], 1)
    counts = np.outer(np.diff(rows), np.diff(columns)).reshape(sums.shape[:2] + (1,) * (picture.ndim - 2))
    return (sums / counts).astype(np.float32)
