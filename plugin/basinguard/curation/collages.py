"""Collages: pictures that hold several of the others side by side, which must never stay instead of one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..core.images import BadImage, load_rgb
from ..similarity.registration import Box
from .colour_match import LUMA
from .duplicates import Pair
from .scan import Scan, inside_frame

PIECE = 0.9  # share of a picture up to which a piece of it may be a tile
RIM = 0.03  # of a side, beside which a border of a piece is that of the picture
NEAR, BESIDE = 3, (6, 16)  # pixels from a border where a seam lies, and where the picture goes on as usual
SEAM, LEAST = 3.0, 6.0  # times the usual step from pixel to pixel, and levels
COVERED = 0.85  # share of a collage that the others must show before it may go
GRID = 64  # cells of a side by which that share is counted


def tell_collages(scan: Scan, pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, those of a picture and a collage that holds it marked as such.

    A crop was cut out of the middle of things; a tile ends where its picture does. So a picture is a collage of a piece
    where it has a seam along every border of the piece that is not its own.
    """
    pieces: dict[int, list[int]] = {}
    for number, pair in enumerate(pairs):
        if pair.same and pair.box is not None and not pair.turned and _area(pair.box) < PIECE:
            pieces.setdefault(pair.second if pair.swapped else pair.first, []).append(number)
    marked = list(pairs)
    for whole, numbers in pieces.items():
        grey = _grey(scan, whole)
        for number in numbers:
            box = pairs[number].box
            if grey is not None and box is not None and has_seams(grey, box):
                marked[number] = replace(pairs[number], collage=whole, reason="one is a collage that shows the other")
    return marked


def partly_known(pairs: Iterable[Pair]) -> set[int]:
    """Collages that also show something that no other image does, so that dropping them would lose it."""
    shown: dict[int, NDArray[np.bool_]] = {}
    for pair in pairs:
        if pair.collage is not None and pair.box is not None:
            left, top, right, bottom = (round(GRID * edge) for edge in pair.box)
            shown.setdefault(pair.collage, np.zeros((GRID, GRID), bool))[top:bottom, left:right] = True
    return {row for row, cells in shown.items() if cells.mean() < COVERED}


def has_seams(grey: NDArray[np.float32], box: Box) -> bool:
    """Whether a picture [H, W] of 0 to 255 has a seam along each border of a box that is not its own, at least one."""
    left, top, right, bottom = box
    upright = [_is_seam(grey, edge, (top, bottom)) for edge in (left, right) if RIM < edge < 1 - RIM]
    level = [_is_seam(grey.T, edge, (left, right)) for edge in (top, bottom) if RIM < edge < 1 - RIM]
    return bool(upright or level) and all(upright + level)


def _is_seam(grey: NDArray[np.float32], edge: float, span: tuple[float, float]) -> bool:
    """Whether the step from column to column is larger at an upright edge than beside it, along most of it."""
    height, width = grey.shape
    strip = grey[round(span[0] * height) : round(span[1] * height)]
    at = round(edge * width) - 1
    if at < BESIDE[1] or at + BESIDE[1] + 1 >= width or len(strip) < BESIDE[1]:
        return False
    steps = np.abs(np.diff(strip[:, at - BESIDE[1] : at + BESIDE[1] + 2], axis=1))
    distance = np.abs(np.arange(steps.shape[1]) - BESIDE[1])
    columns = np.median(steps, 0)
    here, usual = float(columns[distance <= NEAR].max()), float(np.median(columns[distance >= BESIDE[0]]))
    return here >= max(LEAST, SEAM * usual)


def _grey(scan: Scan, row: int) -> NDArray[np.float32] | None:
    """What lies inside the frame of an image, [H, W]."""
    try:
        picture = load_rgb(scan.items[row].path)
    except BadImage:
        return None
    return np.asarray(picture.crop(inside_frame(picture)), np.float32) @ LUMA


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
