"""How well two pictures agree where one lies on the other, and the first question: do they fit whole?

Both are band-passed (a blurred self subtracted), which removes what exposure, tint and sky have in common. Two kinds of
evidence then count equally: detail, the median correlation over blocks, so that a caption or a logo, which spoils a
few, does not decide; and the coarse pattern of light and of colour, which strangers that share an edge or two do not
share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 64  # pixels of a thumbnail
BLUR = 4.0  # pixels of the thumbnail; coarser structure is what strangers share
FLAT = 1.0  # grey levels of band-passed contrast below which there is nothing to compare
SOFT = 1.0  # detail is compressed above this many times its root mean square
BLOCK = 8  # pixels; a block is the unit that an overlay spoils
QUIET = 0.02  # mean square of a block's detail below which it does not vote
VOTERS = 6  # blocks that must have a say
COARSE = 5  # cells on a side of the grid on which light and colour are compared
GREY = 3.0  # levels of colour contrast below which there is no colour to compare
STEPS = 127  # levels of detail kept for a fit of whole pictures: a quarter of the memory, for an error of about 0.01
BATCH = 128  # fresh memory for more of them costs more than the work
ACROSS = SIDE // BLOCK


@dataclass(frozen=True)
class Sketches:
    """What the fit of whole pictures needs of each of N, 5 kB an image.

    Attributes:
        detail: blocks of band-passed grey, rows of blocks first, int8 [N, 8, 8, 8, 8].
        light, colour: coarse patterns, [N, 25] and [N, 75].
        coloured: whether there is colour to compare, [N].
    """

    detail: Tensor
    light: Tensor
    colour: Tensor
    coloured: Tensor


def sketch(thumbs: NDArray[np.uint8]) -> Sketches:
    """Sketches of thumbnails, uint8 [N, 64, 64, 3]."""
    count = len(thumbs)
    blocks = torch.empty(count, ACROSS, ACROSS, BLOCK, BLOCK, dtype=torch.int8)
    light, colour = torch.empty(count, COARSE**2), torch.empty(count, 3 * COARSE**2)
    coloured = torch.empty(count, dtype=torch.bool)
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        images = thumbnails_tensor(thumbs[rows])
        levels = detail(images.mean(1)).mul_(STEPS).round_().to(torch.int8)
        blocks[rows] = levels.view(-1, ACROSS, BLOCK, ACROSS, BLOCK).transpose(2, 3)
        light[rows], colour[rows], coloured[rows] = coarse(images)
    return Sketches(blocks, light, colour, coloured)


def fit_whole(sketches: Sketches, pairs: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Similarity of each pair, [P] in [-1, 1], laid over each other whole, and whether one had to be mirrored, [P]."""
    similarity, mirrored = np.empty(len(pairs), np.float32), np.empty(len(pairs), bool)
    for start in range(0, len(pairs), BATCH):
        rows = slice(start, start + BATCH)
        first, second = torch.from_numpy(pairs[rows]).unbind(1)
        upright, flipped = (_whole(sketches, first, second, flip) for flip in (False, True))
        similarity[rows] = torch.maximum(upright, flipped).numpy()
        mirrored[rows] = (flipped > upright).numpy()
    return similarity, mirrored


def _whole(sketches: Sketches, first: Tensor, second: Tensor, flip: bool) -> Tensor:
    def cells(values: Tensor) -> Tensor:
        """Coarse patterns of the second picture, mirrored when it is."""
        return values[second].view(len(second), -1, COARSE, COARSE).flip(-1).flatten(1) if flip else values[second]

    one, two = sketches.detail[first], sketches.detail[second]
    two = two.flip(2, 4) if flip else two
    agreed = median_vote(one.flatten(3).flatten(1, 2).float(), two.flatten(3).flatten(1, 2).float(), STEPS)
    patterns = agreement(
        (sketches.light[first], sketches.colour[first], sketches.coloured[first]),
        (cells(sketches.light), cells(sketches.colour), sketches.coloured[second]),
    )
    return joined(agreed, patterns)


def joined(agreed: Tensor, patterns: Tensor) -> Tensor:
    """Mean of both kinds of evidence, [B]; patterns cannot make up for details that contradict each other."""
    return torch.where(agreed > 0, (agreed + patterns) / 2, agreed)


def thumbnails_tensor(thumbs: NDArray[np.uint8]) -> Tensor:
    """Thumbnails as float [B, 3, 64, 64], values 0 to 255."""
    return torch.from_numpy(thumbs.astype(np.float32)).permute(0, 3, 1, 2)


def detail(grey: Tensor, width: float = 0) -> Tensor:
    """Grey levels minus their blurred self, compressed so that no edge outvotes the rest, in [-1, 1], [B, H, W]."""
    width = width or BLUR * grey.shape[-1] / SIDE
    band = grey - _blur(grey.shape[1], width) @ grey @ _blur(grey.shape[2], width).T
    contrast = band.pow(2).mean((1, 2), keepdim=True).sqrt()
    return torch.where(contrast > FLAT, torch.tanh(band / (SOFT * contrast).clamp(min=1e-6)), 0.0)


@cache
def _blur(side: int, width: float) -> Tensor:
    """A Gaussian average over `width` pixels, [side, side]; weights that would lie outside go to those inside."""
    distance = torch.arange(side)[:, None] - torch.arange(side)[None, :]
    weights = torch.exp(-0.5 * (distance / width) ** 2)
    weights = torch.where(weights < 1e-6, 0.0, weights)  # numbers near 1e-40 multiply a hundred times slower
    return weights / weights.sum(1, keepdim=True)


def median_vote(one: Tensor, two: Tensor, unit: float = 1.0) -> Tensor:
    """Median over blocks of their correlation, [B], of blocks [B, blocks, pixels]; flat blocks do not vote.

    `unit` is the value that stands for a detail of 1.
    """
    power = one.pow(2).sum(2), two.pow(2).sum(2)
    votes = torch.linalg.vecdot(one, two) / (power[0] * power[1]).clamp(min=1e-6).sqrt()
    voting = torch.maximum(*power) > QUIET * BLOCK**2 * unit**2
    median = torch.where(voting, votes, torch.nan).nanmedian(1).values
    return torch.where(voting.sum(1) >= VOTERS, median, 0.0).nan_to_num(0.0)


def coarse(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coarse light [B, 25] and colour [B, 75] around their means, and whether there is colour, [B]."""
    grid = F.adaptive_avg_pool2d(images, COARSE)
    grid = grid - grid.mean((2, 3), keepdim=True)
    colour = (grid - grid.mean(1, keepdim=True)).flatten(1)
    return grid.mean(1).flatten(1), colour, colour.pow(2).mean(1) > GREY**2


def agreement(one: tuple[Tensor, Tensor, Tensor], two: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Correlation of coarse light, averaged with that of colour unless one of them is grey, [B]."""
    light, colour = (F.cosine_similarity(a, b) for a, b in zip(one[:2], two[:2], strict=True))
    return torch.where(one[2] & two[2], (light + colour) / 2, light)
