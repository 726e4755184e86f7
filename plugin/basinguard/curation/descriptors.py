"""Which pictures are worth a careful look: a hash of each, and short descriptions, whole and through windows.

Hashes: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.1 (DCT hash).

A crop resembles no whole picture, but it does resemble one of a few windows on the picture it was cut from. A
description is linear up to its last step, so every window is a small matrix, and mirroring is a reversal of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct
from torch import Tensor

from ..similarity.structure import balance, gaussian_cells

NAME = "views-v1"
SIDE = 64  # pixels of a thumbnail
WINDOW = 50  # a crop of about three quarters looks like one of these windows
CELLS = 8  # of a description, on a side
BLUR = 1.0  # cells; coarser structure is what strangers share
BATCH = 128
REST = SIDE - WINDOW
WHOLE = (0, SIDE)
SPANS = (WHOLE, (0, WINDOW), (REST // 2, WINDOW), (REST, WINDOW))  # first pixel and length, on either axis
PLACES = ((0, 0), (1, 1), (1, 3), (3, 1), (3, 3), (2, 2))  # rows and columns of each view, as indices of SPANS
ROUNDING = 1e-3  # levels; a flat picture's frequencies are rounding errors
LOOKED_UP_FROM = 4000  # images, from which hashes that share a byte are looked up; fewer are all compared
LOW = 8  # frequencies of a hash on a side: 64 bits
COMPARED = 128  # rows of hashes at once: 128 x N distances in memory, 8 bytes each on the way
BITS = 12  # looser than the usual 10, because a proposal is checked by registration afterwards
TURNED_BITS = 7  # of a picture that was only turned and saved again
PER_ROW = 8  # nearest proposals kept for an image, so that a thousand near-copies do not make a million pairs
MIRROR: NDArray[np.float32] = ((-1.0) ** np.arange(LOW)).astype(
    np.float32
)  # mirroring a row turns the sign of its odd frequencies
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))  # luminance, red-green, yellow-blue


@dataclass(frozen=True)
class Descriptors:
    """Descriptions of N thumbnails as unit vectors of 3 x 8 x 8 numbers.

    Attributes:
        upright: each picture whole, then through five windows, six tensors [N, 192].
        mirrored: each picture whole and mirrored, [N, 192].
    """

    upright: tuple[Tensor, ...]
    mirrored: Tensor


def describe_thumbnails(thumbs: NDArray[np.uint8], *, windows: bool = True) -> Descriptors:
    """Descriptions of thumbnails, uint8 [N, 64, 64, 3]; without `windows` only of whole pictures."""
    places, smoothing = PLACES if windows else PLACES[:1], gaussian_cells(CELLS, CELLS, BLUR)
    upright = [torch.empty(len(thumbs), 3 * CELLS**2) for _ in places]
    mirrored = torch.empty(len(thumbs), 3 * CELLS**2)
    for start in range(0, len(thumbs), BATCH):
        rows = slice(start, start + BATCH)
        for view, grid in zip(upright, _grids(thumbs[rows], places), strict=True):
            band = balance(grid - torch.einsum("rh,bchw,sw->bcrs", smoothing, grid, smoothing)).flatten(1)
            view[rows] = band / band.norm(dim=1, keepdim=True).clamp(min=1e-6)
        mirrored[rows] = upright[0][rows].view(-1, CELLS, CELLS).flip(-1).view(-1, 3 * CELLS**2)
    return Descriptors(tuple(upright), mirrored)


def _grids(thumbs: NDArray[np.uint8], places: tuple[tuple[int, int], ...]) -> Iterator[Tensor]:
    """Opponent colours of every view on a coarse grid, each [B, 3, 8, 8]."""
    spans = len(SPANS) if len(places) > 1 else 1
    flat = torch.from_numpy(thumbs.reshape(-1, SIDE * 3).astype(np.float32))
    across = (flat @ _columns(spans)).view(len(thumbs), SIDE, spans, 3, CELLS)
    for rows, columns in places:
        yield torch.einsum("rh,bhcw->bcrw", _averages(*SPANS[rows]), across[:, :, columns])


@cache
def _columns(spans: int) -> Tensor:
    """From the 64 x 3 values of a row of pixels to 8 cells of each opponent colour in each span, [192, spans * 24]."""
    averages = torch.stack([_averages(*span) for span in SPANS[:spans]])
    return torch.einsum("scx,oi->xisoc", averages, torch.tensor(OPPONENT) / 255).reshape(SIDE * 3, -1)


@cache
def _averages(first: int, length: int) -> Tensor:
    """Gaussian weights of 64 pixels for each of the 8 cells of a span, [8, 64]; nothing outside it counts."""
    pixels = torch.arange(SIDE)
    centres = first + (torch.arange(CELLS) + 0.5) * length / CELLS
    weights = torch.exp(-0.5 * ((pixels + 0.5 - centres[:, None]) * CELLS / length / 0.5) ** 2)
    weights = weights * ((pixels >= first) & (pixels < first + length))
    weights = weights / weights.sum(1, keepdim=True)
    return torch.where(weights < 1e-6, 0.0, weights)  # a processor multiplies numbers near 1e-40 a hundred times slower


def perceptual_hashes(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 64-bit DCT hash of each thumbnail and of its mirror image, uint64 [N, 2].

    Args:
        thumbs: uint8 [N, S, S, 3] with S divisible by 32.

    Example:
        >>> flat = np.full((1, 64, 64, 3), 7, np.uint8)
        >>> bool((perceptual_hashes(flat) == perceptual_hashes(flat + np.uint8(1))).all())
        True
    """
    hashes = np.empty((len(thumbs), 2), np.uint64)
    for start, low in _low_frequencies(thumbs):
        hashes[start : start + len(low)] = np.stack([_signs(low), _signs(low * MIRROR)], 1)
    return hashes


def _low_frequencies(thumbs: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The 8 x 8 lowest frequencies of grey, batch by batch: the first row of each, and [B, 8, 8]."""
    side = thumbs.shape[1]
    down = _frequencies(side)
    across = (down / np.float32(3)).repeat(3, axis=1).T  # of grey: a third of each colour
    for start in range(0, len(thumbs), COMPARED):
        part = thumbs[start : start + COMPARED]
        rows = (part.reshape(-1, side * 3).astype(np.float32) @ across).reshape(len(part), side, LOW)
        low = down @ rows
        low[np.abs(low) < ROUNDING] = 0
        yield start, low


@cache
def _frequencies(side: int) -> NDArray[np.float32]:
    """From the pixels of a side, averaged to 32, to the 8 lowest frequencies, [8, side]."""
    low = dct(np.eye(32), axis=0, norm="ortho")[:LOW].repeat(side // 32, axis=1)
    return (low * 32 / side).astype(np.float32)


def part_hashes(grey: NDArray[np.float32], box: tuple[float, float, float, float]) -> NDArray[np.uint64]:
    """The hash of a part of each thumbnail, enlarged to a thumbnail, [N].

    Args:
        grey: thumbnails [N, S, S], S divisible by 32.
        box: left, top, right and bottom of the part, as shares of the sides.
    """
    side = grey.shape[1]
    down, across = (_frequencies(side) @ _enlarging(side, *span) for span in ((box[1], box[3]), (box[0], box[2])))
    rows = (grey.reshape(-1, side) @ across.T).reshape(-1, side, LOW)  # one product, not one for each thumbnail
    low = np.tensordot(rows, down, (1, 1)).swapaxes(1, 2)
    low[np.abs(low) < ROUNDING] = 0
    return _signs(np.ascontiguousarray(low))


@cache
def _enlarging(side: int, start: float, end: float) -> NDArray[np.float32]:
    """Weights [side, side] that enlarge what lies between two shares of a side to all of it."""
    each_pixel = Image.fromarray(np.eye(side, dtype=np.float32))
    return np.asarray(each_pixel.resize((side, side), Image.Resampling.BICUBIC, (0, start * side, side, end * side)))


def turned_proposals(thumbs: NDArray[np.uint8], limit: int = TURNED_BITS) -> NDArray[np.int64]:
    """Pairs near by hash once the first is turned, int64 [P, 3]: both rows, and degrees counterclockwise, 90 or 180.

    Pairs share a byte of their hashes, which all within 7 bits do; that is looked up, because few are turned and
    comparing everything three times over would cost more than all the rest.
    """
    hashes = _turned_hashes(thumbs)
    proposals = [np.empty((0, 3), np.int64)]
    for degrees, queries in ((90, hashes[:, 1]), (180, hashes[:, 2])):
        pairs = _sharing_a_byte(queries, hashes[:, 0], limit)
        proposals.append(np.column_stack([pairs, np.full(len(pairs), degrees)]))
    return np.concatenate(proposals)


def _turned_hashes(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The hash of each thumbnail upright, turned by 90 and by 180 degrees counterclockwise, [N, 3]."""
    hashes = np.empty((len(thumbs), 3), np.uint64)
    for start, low in _low_frequencies(thumbs):
        turns = (low, low.swapaxes(1, 2) * MIRROR[:, None], low * (MIRROR * MIRROR[:, None]))
        hashes[start : start + len(low)] = np.stack([_signs(np.ascontiguousarray(turn)) for turn in turns], 1)
    return hashes


def _sharing_a_byte(queries: NDArray[np.uint64], entries: NDArray[np.uint64], limit: int) -> NDArray[np.int64]:
    if len(entries) < LOOKED_UP_FROM:
        return np.unique(near_pairs(queries, entries, limit=limit, per_row=len(entries)), axis=0)
    sharing = [np.empty((0, 2), np.int64)]
    for byte in range(8):
        shift = np.uint64(8 * byte)
        ours, theirs = (values >> shift & np.uint64(255) for values in (queries, entries))
        for value in range(256):
            rows, columns = np.flatnonzero(ours == value), np.flatnonzero(theirs == value)
            near = np.bitwise_count(queries[rows, None] ^ entries[columns][None]) <= limit
            first, second = np.nonzero(near)
            sharing.append(np.stack([rows[first], columns[second]], 1))
    pairs = np.unique(np.concatenate(sharing), axis=0)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _signs(low: NDArray[np.float32]) -> NDArray[np.uint64]:
    flat = low.reshape(len(low), -1)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def near_pairs(
    queries: NDArray[np.uint64], entries: NDArray[np.uint64], *, limit: int = BITS, per_row: int = PER_ROW
) -> NDArray[np.int64]:
    """Pairs (query, known) at most `limit` bits apart, the `per_row` nearest of each query, int64 [P, 2].

    A query is not paired with the entry at its own index, so the same array may be given twice.
    """
    blocks = list(_near_blocks(queries, entries, limit, per_row))
    return np.concatenate(blocks) if blocks else np.empty((0, 2), np.int64)


def _near_blocks(queries: NDArray, entries: NDArray, limit: int, per_row: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(queries), COMPARED):
        distances = np.bitwise_count(queries[start : start + COMPARED, None] ^ entries[None])
        rows, columns = np.nonzero(distances <= limit)
        bits = distances[rows, columns]
        other = rows + start != columns
        rows, columns, bits = rows[other], columns[other], bits[other]
        order = np.lexsort((columns, bits, rows))
        rows, columns = rows[order], columns[order]
        first = np.searchsorted(rows, rows)  # where each row's run begins
        keep = np.arange(len(rows)) - first < per_row
        yield np.stack([rows[keep] + start, columns[keep]], 1)
