"""Where thumbnails look pasted together, and which of the others their tiles may be.

A search looks for pieces of at least 0.6 of a side; the tiles of a collage are smaller, and lie where a grid says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..similarity.overlay_fit import sketch
from ..similarity.registration import Box, whole_overlays
from .descriptors import COMPARED, part_hashes, perceptual_hashes

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (3, 3))  # tiles down and across
SEAM = 1.5  # times the median step from pixel to pixel, which the step at a border of tiles reaches
AT_ONCE = 128  # thumbnails; fresh memory for more of them costs more than the work
FLAT = 3.0  # levels of contrast of a tile that shows nothing
LIMIT = 12  # bits that the hash of a tile may be off, as those of whole pictures

Proposal = tuple[int, int, Box]


def tile_proposals(thumbs: NDArray[np.uint8]) -> list[Proposal]:
    """Collages and what they may hold: row of the collage, row of the other, and the nearest tile, in shares of sides.

    A hash so far off is near to one in thousands by chance: the tile, enlarged, must also fit the other's thumbnail.

    Args:
        thumbs: uint8 [N, 64, 64, 3].
    """
    hashes = perceptual_hashes(thumbs)[:, 0]
    best: dict[tuple[int, int], tuple[int, Box]] = {}  # bits that the nearest tile is off
    for first in range(0, len(thumbs), AT_ONCE):
        grey = _grey(thumbs[first : first + AT_ONCE])
        for whole, row, bits, box in _near_tiles(grey, hashes):
            pair = first + whole, row
            if pair[0] != row and bits < best.get(pair, (LIMIT + 1, box))[0]:
                best[pair] = bits, box
    near = [(whole, row, box) for (whole, row), (_, box) in sorted(best.items())]
    batches = (near[first : first + AT_ONCE] for first in range(0, len(near), AT_ONCE))
    return [proposal for batch in batches for proposal in _fitting(thumbs, batch)]


def _fitting(thumbs: NDArray[np.uint8], proposals: list[Proposal]) -> list[Proposal]:
    """Those whose tile and other picture fit when laid over each other whole, as thumbnails."""
    both = [picture for whole, row, box in proposals for picture in (_enlarged(thumbs[whole], box), thumbs[row])]
    overlays = whole_overlays(sketch(np.stack(both)), np.arange(len(both)).reshape(-1, 2))
    return [each for each, overlay in zip(proposals, overlays, strict=True) if overlay.fits and not overlay.mirrored]


def _enlarged(thumb: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A part of a thumbnail [64, 64, 3] as one."""
    side = len(thumb)
    edges = box[0] * side, box[1] * side, box[2] * side, box[3] * side
    return np.asarray(Image.fromarray(thumb).resize((side, side), Image.Resampling.BICUBIC, edges))


def _grey(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of the three colours, [N, 64, 64]; numpy's own mean over an axis of three takes seven times as long."""
    red, green, blue = (thumbs[..., channel].astype(np.float32) for channel in range(3))
    return (red + green + blue) / np.float32(3)


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
        for place in np.flatnonzero(bits <= LIMIT).tolist():
            tile, row = divmod(place, len(hashes))
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
