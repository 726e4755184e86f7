"""Perceptual hashes of thumbnails, and all pairs within a few bits: the fast first look.

Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.1 (DCT hash).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

CELLS = 8  # low frequencies on a side: 64 bits
BLOCK = 128  # rows compared at once: 128 x N distances in memory, 8 bytes each on the way
LIMIT = 12  # bits; looser than the usual 10, because a proposal is checked by registration afterwards
PER_ROW = 8  # nearest proposals kept for an image, so that a thousand near-copies do not make a million pairs
MIRROR = np.float32((-1) ** np.arange(CELLS))  # mirroring a row turns the sign of its odd frequencies


def perceptual_hashes(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 64-bit DCT hash of each thumbnail and of its mirror image, uint64 [N, 2].

    Args:
        thumbs: uint8 [N, S, S, 3] with S divisible by 32.

    Example:
        >>> flat = np.full((1, 64, 64, 3), 7, np.uint8)
        >>> bool((perceptual_hashes(flat) == perceptual_hashes(flat + np.uint8(1))).all())
        True
    """
    side = thumbs.shape[1]
    down = dct(np.eye(32), axis=0, norm="ortho")[:CELLS].repeat(side // 32, axis=1).astype(np.float32) * 32 / side
    across = (down / 3).repeat(3, axis=1).T  # of grey: a third of each colour
    hashes = np.empty((len(thumbs), 2), np.uint64)
    for start in range(0, len(thumbs), BLOCK):
        part = thumbs[start : start + BLOCK]
        rows = (part.reshape(-1, side * 3).astype(np.float32) @ across).reshape(len(part), side, CELLS)
        low = down @ rows
        low[np.abs(low) < 1e-3] = 0  # a flat picture's frequencies are rounding errors
        hashes[start : start + BLOCK] = np.stack([_signs(low), _signs(low * MIRROR)], 1)
    return hashes


def _signs(low: NDArray[np.float32]) -> NDArray[np.uint64]:
    flat = low.reshape(len(low), -1)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def near_pairs(
    queries: NDArray[np.uint64], entries: NDArray[np.uint64], *, limit: int = LIMIT, per_row: int = PER_ROW
) -> NDArray[np.int64]:
    """Pairs (query, known) at most `limit` bits apart, the `per_row` nearest of each query, int64 [P, 2].

    A query is not paired with the entry at its own index, so the same array may be given twice.
    """
    blocks = list(_near_blocks(queries, entries, limit, per_row))
    return np.concatenate(blocks) if blocks else np.empty((0, 2), np.int64)


def _near_blocks(queries: NDArray, entries: NDArray, limit: int, per_row: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(queries), BLOCK):
        distances = np.bitwise_count(queries[start : start + BLOCK, None] ^ entries[None])
        rows, columns = np.nonzero(distances <= limit)
        bits = distances[rows, columns]
        other = rows + start != columns
        rows, columns, bits = rows[other], columns[other], bits[other]
        order = np.lexsort((columns, bits, rows))
        rows, columns = rows[order], columns[order]
        first = np.searchsorted(rows, rows)  # where each row's run begins
        keep = np.arange(len(rows)) - first < per_row
        yield np.stack([rows[keep] + start, columns[keep]], 1)
