"""Which pictures are worth a careful look: short descriptions of each, whole and through windows, all at once.

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
from torch import Tensor

from ..similarity.structure import balance

NAME = "views-v1"
SIDE = 64  # pixels of a thumbnail
WINDOW = 50  # a crop of about three quarters looks like one of these windows
CELLS = 8  # of a description, on a side
BLUR = 1.0  # cells; coarser structure is what strangers share
BATCH = 256
REST = SIDE - WINDOW
WHOLE = (0, SIDE)
SPANS = (WHOLE, (0, WINDOW), (REST // 2, WINDOW), (REST, WINDOW))  # first pixel and length, on either axis
PLACES = ((0, 0), (1, 1), (1, 3), (3, 1), (3, 3), (2, 2))  # rows and columns of each view, as indices of SPANS
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))  # luminance, red-green, yellow-blue


@dataclass(frozen=True)
class Views:
    """Descriptions of N thumbnails as unit vectors of 3 x 8 x 8 numbers.

    Attributes:
        upright: each picture whole, then through five windows, six tensors [N, 192].
        mirrored: each picture whole and mirrored, [N, 192].
    """

    upright: tuple[Tensor, ...]
    mirrored: Tensor


def describe(thumbs: NDArray[np.uint8], *, windows: bool = True) -> Views:
    """Descriptions of thumbnails, uint8 [N, 64, 64, 3]; without `windows` only of whole pictures."""
    places = PLACES if windows else PLACES[:1]
    upright = [torch.empty(len(thumbs), 3 * CELLS**2) for _ in places]
    mirrored = torch.empty(len(thumbs), 3 * CELLS**2)
    for start in range(0, len(thumbs), BATCH):
        rows = slice(start, start + BATCH)
        for view, grid in zip(upright, _grids(thumbs[rows], places), strict=True):
            band = balance(grid - _smooth(grid)).flatten(1)
            view[rows] = band / band.norm(dim=1, keepdim=True).clamp(min=1e-6)
        mirrored[rows] = upright[0][rows].view(-1, CELLS, CELLS).flip(-1).view(-1, 3 * CELLS**2)
    return Views(tuple(upright), mirrored)


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
    return _without_tails(weights / weights.sum(1, keepdim=True))


def _without_tails(weights: Tensor) -> Tensor:
    """Weights too small to matter as zeros: a processor multiplies numbers near 1e-40 a hundred times slower."""
    return torch.where(weights < 1e-6, 0.0, weights)


@cache
def _smoothing() -> Tensor:
    cells = torch.arange(CELLS)
    weights = torch.exp(-0.5 * ((cells[:, None] - cells) / BLUR) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _smooth(grid: Tensor) -> Tensor:
    return torch.einsum("rh,bchw,sw->bcrs", _smoothing(), grid, _smoothing())
