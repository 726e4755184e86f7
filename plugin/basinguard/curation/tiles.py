"""Where thumbnails look pasted together, and which of the others their tiles may be.

A search looks for pieces of at least 0.6 of a side; the tiles of a collage are smaller, and lie where a grid says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..similarity.registration import Box
from .descriptors import perceptual_hashes

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3))  # tiles down and across
SEAM = 1.5  # times the median step from pixel to pixel, which the step at a border of tiles reaches
LIMIT = 12  # bits that the hash of a tile may be off, as those of whole pictures


def tile_proposals(thumbs: NDArray[np.uint8]) -> list[tuple[int, int, Box]]:
    """Collages and what they may hold: row of the collage, row of the other, and the tile as shares of the sides.

    Args:
        thumbs: uint8 [N, 64, 64, 3].
    """
    hashes, proposals = perceptual_hashes(thumbs)[:, 0], []
    for whole, boxes in _grids(thumbs):
        tiles = np.stack([_cut(thumbs[whole], box) for box in boxes])
        bits = np.bitwise_count(perceptual_hashes(tiles)[:, :1] ^ hashes)
        near = [(tile, row) for tile, row in np.argwhere(bits <= LIMIT).tolist() if row != whole]
        proposals += [(whole, row, boxes[tile]) for tile, row in near]
    return list(dict.fromkeys(proposals))


def _grids(thumbs: NDArray[np.uint8]) -> Iterator[tuple[int, list[Box]]]:
    """Each thumbnail with a seam along all the lines of a grid, and the tiles of that grid."""
    grey = thumbs.astype(np.float32).mean(-1)
    across, down = (np.abs(np.diff(grey, axis=axis)).mean(3 - axis) for axis in (2, 1))  # steps [N, 63] along each side
    for tall, wide in GRIDS:
        seamed = _all_seams(down, tall) & _all_seams(across, wide)
        boxes = [(x / wide, y / tall, (x + 1) / wide, (y + 1) / tall) for y in range(tall) for x in range(wide)]
        for whole in np.flatnonzero(seamed).tolist():
            yield whole, boxes


def _all_seams(steps: NDArray[np.float32], tiles: int) -> NDArray[np.bool_]:
    """Which thumbnails have a large step at each border between so many tiles, [N]."""
    usual, side = np.median(steps, 1), steps.shape[1] + 1
    seams = np.ones(len(steps), bool)
    for border in range(1, tiles):
        at = round(border * side / tiles) - 1
        seams &= steps[:, at - 1 : at + 2].max(1) >= SEAM * usual
    return seams


def _cut(thumb: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A tile enlarged to a thumbnail."""
    side = len(thumb)
    left, top, right, bottom = (edge * side for edge in box)
    return np.asarray(Image.fromarray(thumb).resize((side, side), Image.Resampling.BICUBIC, (left, top, right, bottom)))
