"""Perceptual hashes of thumbnails, and all pairs within a few bits: the fast first look.

Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.1 (DCT hash).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

CELLS = 8  # low frequencies on a side: 64 bits
BLOCK = 512  # rows compared at once: 512 x N distances in memory
LIMIT = 12  # bits; looser than the usual 10, because a proposal is checked by registration afterwards
PER_ROW = 8  # nearest proposals kept for an image, so that a thousand near-copies do not make a million pairs


def perceptual_hash(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 64-bit DCT hash of each thumbnail, uint64 [N], from uint8 [N, S, S, 3] with S divisible by 32.

    Example:
        >>> flat = np.full((1, 64, 64, 3), 7, np.uint8)
        >>> bool(perceptual_hash(flat) == perceptual_hash(flat + np.uint8(1)))
        True
    """
    basis = dct(np.eye(32), axis=0, norm="ortho")[:CELLS].astype(np.float32)
    hashes = np.empty(len(thumbs), np.uint64)
    for start in range(0, len(thumbs), BLOCK):
        grey = thumbs[start : start + BLOCK].astype(np.float32).mean(-1)
        step = grey.shape[1] // 32
        small = grey.reshape(len(grey), 32, step, 32, step).mean((2, 4))
        low = (basis @ small @ basis.T).reshape(len(grey), -1)
        low[np.abs(low) < 1e-3] = 0  # a flat picture's frequencies are rounding errors
        bits = low > np.median(low, axis=1, keepdims=True)
        hashes[start : start + BLOCK] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return hashes


def near_pairs(
    queries: NDArray[np.uint64], known: NDArray[np.uint64], *, limit: int = LIMIT, per_row: int = PER_ROW
) -> NDArray[np.int64]:
    """Pairs (query, known) at most `limit` bits apart, the `per_row` nearest of each query, int64 [P, 2].

    A query is not paired with the entry at its own index, so the same array may be given twice.
    """
    found = list(_near_blocks(queries, known, limit, per_row))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _near_blocks(queries: NDArray, known: NDArray, limit: int, per_row: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(queries), BLOCK):
        distances = np.bitwise_count(queries[start : start + BLOCK, None] ^ known[None])
        rows, columns = np.nonzero(distances <= limit)
        bits = distances[rows, columns]
        other = rows + start != columns
        rows, columns, bits = rows[other], columns[other], bits[other]
        order = np.lexsort((columns, bits, rows))
        rows, columns = rows[order], columns[order]
        first = np.searchsorted(rows, rows)  # where each row's run begins
        keep = np.arange(len(rows)) - first < per_row
        yield np.stack([rows[keep] + start, columns[keep]], 1)
