"""Where thumbnails look pasted together, and which of the others their tiles may be.

A search looks for pieces of at least 0.6 of a side; the tiles of a collage are smaller, and lie where a grid says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..similarity.registration import Box
from .descriptors import COMPARED, part_hashes, perceptual_hashes

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3))  # tiles down and across
SEAM = 1.5  # times the median step from pixel to pixel, which the step at a border of tiles reaches
AT_ONCE = 512  # thumbnails, 25 MB of numbers
FLAT = 3.0  # levels of contrast of a tile that shows nothing
LIMIT = 12  # bits that the hash of a tile may be off, as those of whole pictures


def tile_proposals(thumbs: NDArray[np.uint8]) -> list[tuple[int, int, Box]]:
    """Collages and what they may hold: row of the collage, row of the other, and the nearest tile, in shares of sides.

    Args:
        thumbs: uint8 [N, 64, 64, 3].
    """
    hashes = perceptual_hashes(thumbs)[:, 0]
    best: dict[tuple[int, int], tuple[int, Box]] = {}  # bits that the nearest tile is off
    for first in range(0, len(thumbs), AT_ONCE):
        grey = thumbs[first : first + AT_ONCE].astype(np.float32).mean(-1)
        for whole, row, bits, box in _near_tiles(grey, hashes):
            pair = first + whole, row
            if pair[0] != row and bits < best.get(pair, (LIMIT + 1, box))[0]:
                best[pair] = bits, box
    return [(whole, row, box) for (whole, row), (_, box) in sorted(best.items())]


def _near_tiles(grey: NDArray[np.float32], hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int, int, Box]]:
    """Tiles that are near a hash: number of the thumbnail, row of the hash, the bits that it is off, and the tile."""
    for wholes, boxes in _grids(grey):
        for box in boxes:
            detailed = wholes[_contrast(grey[wholes], box) >= FLAT]
            tiles = part_hashes(grey[detailed], box) if len(detailed) else np.empty(0, np.uint64)
            for place, row, bits in _near(tiles, hashes):
                yield int(detailed[place]), row, bits, box


def _contrast(grey: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    """The standard deviation of a part of each thumbnail, [N]; the hash of a flat one says nothing."""
    left, top, right, bottom = (round(edge * grey.shape[1]) for edge in box)
    return grey[:, top:bottom, left:right].std((1, 2))


def _near(tiles: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """Which hashes are near which tile's, and by how many bits they differ."""
    for start in range(0, len(tiles), COMPARED):
        bits = np.bitwise_count(tiles[start : start + COMPARED, None] ^ hashes[None])
        for tile, row in np.argwhere(bits <= LIMIT).tolist():
            yield start + tile, row, int(bits[tile, row])


def _grids(grey: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int64], list[Box]]]:
    """The thumbnails [N, 64, 64] with a seam along all the lines of a grid, and the tiles of that grid."""
    across, down = (np.abs(np.diff(grey, axis=axis)).mean(3 - axis) for axis in (2, 1))  # steps [N, 63] along each side
    for tall, wide in GRIDS:
        seamed = _all_seams(down, tall) & _all_seams(across, wide)
        boxes = [(x / wide, y / tall, (x + 1) / wide, (y + 1) / tall) for y in range(tall) for x in range(wide)]
        if seamed.any():
            yield np.flatnonzero(seamed), boxes


def _all_seams(steps: NDArray[np.float32], tiles: int) -> NDArray[np.bool_]:
    """Which thumbnails have a large step at each border between so many tiles, [N]."""
    usual, side = np.median(steps, 1), steps.shape[1] + 1
    seams = np.ones(len(steps), bool)
    for border in range(1, tiles):
        at = round(border * side / tiles) - 1
        seams &= steps[:, at - 1 : at + 2].max(1) >= SEAM * usual
    return seams
