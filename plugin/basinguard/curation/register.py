"""Is one picture a piece of the other? Thumbnails laid over each other at every place, several sizes, and mirrored.

A hash or an embedding proposes pairs; this decides. Two photographs of one subject share colours and layout and so
resemble each other to any global descriptor, but only copies agree detail by detail once one is laid over the other.

Both pictures are band-passed (a blurred self subtracted), which removes what exposure, tint and sky have in common.
The best place is where the normalized cross-correlation peaks. There, two kinds of evidence count equally: detail, the
median correlation over blocks, so that a caption or a logo, which spoils a few, does not decide; and the coarse
pattern of light and of colour, which strangers that share an edge or two do not share.

Source: Lewis, "Fast Template Matching", Vision Interface (1995): normalized cross-correlation by FFT and running sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SCALES = (1.0, 0.93, 0.87, 0.81, 0.75, 0.7, 0.65, 0.6)  # share of the larger picture's height
BLUR = 4.0  # pixels of the thumbnail; coarser structure is what strangers share
FLAT = 1.0  # grey levels of band-passed contrast below which there is nothing to compare
SOFT = 1.0  # detail is compressed above this many times its root mean square
QUIET = 0.02  # mean square of a block's detail below which it does not vote
VOTERS = 6  # blocks that must have a say
COARSE = 5  # cells on a side of the grid on which light and colour are compared
GREY = 3.0  # levels of colour contrast below which there is no colour to compare
BLOCK = 8  # pixels; a block is the unit that an overlay spoils
CERTAIN = 0.9  # a plain fit this good needs no search
BATCH = 256
ASPECT_STEP = 0.05  # pairs whose log aspect ratios differ by this much are laid over each other in one batch


@dataclass(frozen=True)
class Overlay:
    """How well the best overlay of a pair fits.

    Attributes:
        similarity: mean of the agreement in detail and in the coarse pattern, in [-1, 1]; 1 = the same picture.
        share: part of the larger picture's area that the smaller one covers, in (0, 1].
        mirrored: one of them is flipped left to right.
    """

    similarity: float
    share: float
    mirrored: bool


def register(thumbs: NDArray[np.uint8], aspects: NDArray, pairs: NDArray, *, search: bool = True) -> list[Overlay]:
    """The best overlay of each pair.

    Args:
        thumbs: uint8 [N, 64, 64, 3], squashed to a square.
        aspects: width / height of each original, [N].
        pairs: indices, [P, 2].
        search: also look for one picture inside the other; without it both are laid over each other whole, which costs
            a fiftieth and is all that most copies need.

    Returns:
        One `Overlay` for each pair, in order; similarity 0 for a picture without structure.
    """
    best: list[Overlay] = [Overlay(0.0, 1.0, False)] * len(pairs)
    batches = list(_batches(aspects, pairs))
    with _one_thread_each() as mapped:
        found = mapped(lambda batch: _overlays(thumbs, pairs[batch[0]], batch[1], search), batches)
        for (rows, _), overlays in zip(batches, found, strict=True):
            for row, overlay in zip(rows, overlays, strict=True):
                best[row] = overlay
    return best


@contextmanager
def _one_thread_each() -> Iterator[Callable[..., Iterator[list[Overlay]]]]:
    """`map` over threads that each compute alone: these operations are too small to be shared between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _overlays(thumbs: NDArray[np.uint8], pairs: NDArray, skew: float, search: bool) -> list[Overlay]:
    first, second = (_colour(thumbs[pairs[:, side]]) for side in (0, 1))
    best = _squarely(first, second)
    unsure = [place for place, overlay in enumerate(best) if search and overlay.similarity < CERTAIN]
    if unsure:
        for place, overlay in zip(unsure, _lay_over(first[unsure], second[unsure], skew), strict=True):
            best[place] = overlay
    return best


def _batches(aspects: NDArray, pairs: NDArray) -> Iterator[tuple[NDArray, float]]:
    """Rows of `pairs` that share one ratio of aspects, and that ratio (second over first)."""
    steps = np.round(np.log(aspects[pairs[:, 1]] / aspects[pairs[:, 0]]) / ASPECT_STEP).astype(int)
    for step in np.unique(steps):
        rows = np.flatnonzero(steps == step)
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH], math.exp(step * ASPECT_STEP)


def _colour(thumbs: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(thumbs).permute(0, 3, 1, 2).float()


def _squarely(first: Tensor, second: Tensor) -> list[Overlay]:
    """Both laid over each other whole, upright or mirrored: what most copies need."""
    corner = torch.zeros(len(first), 2, dtype=torch.long)
    canvas, template = _detail(first.mean(1)), _detail(second.mean(1))
    upright = _agreement(first, second, canvas, template, corner)
    mirrored = _agreement(first, second.flip(-1), canvas, template.flip(-1), corner)
    flip = mirrored > upright
    best = torch.where(flip, mirrored, upright)
    return [Overlay(s, 1.0, m) for s, m in zip(best.tolist(), flip.tolist(), strict=True)]


def _lay_over(first: Tensor, second: Tensor, skew: float) -> list[Overlay]:
    """Searches all sizes and places at half resolution, then looks closely around the best; images [B, 3, 64, 64]."""
    small = [F.avg_pool2d(image.mean(1, keepdim=True), 2) for image in (first, second)]
    options, peaks = [], []
    for swap in (False, True):
        whole, part = _ordered(small, swap)
        canvas = _detail(whole[:, 0])
        for size in _sizes(first.shape[-1], 1 / skew if swap else skew):
            template = _detail(_resize(part, (size[0] // 2, size[1] // 2))[:, 0], BLUR / 2)
            for mirrored in (False, True):
                options.append((swap, mirrored, size))
                peaks.append(_correlate(canvas, template.flip(-1) if mirrored else template)[0])
    chosen = torch.stack(peaks).argmax(0)
    found: list[Overlay] = [Overlay(0.0, 1.0, False)] * len(first)
    for number in chosen.unique().tolist():
        rows = torch.nonzero(chosen == number)[:, 0]
        swap, mirrored, size = options[number]
        closely = _look_closely(*_ordered((first[rows], second[rows]), swap), mirrored, size)
        share = size[0] * size[1] / first.shape[-1] ** 2
        for row, similarity in zip(rows.tolist(), closely.tolist(), strict=True):
            found[row] = Overlay(similarity, share, mirrored)
    return found


def _ordered(images: Sequence[Tensor], swap: bool) -> tuple[Tensor, Tensor]:
    return (images[1], images[0]) if swap else (images[0], images[1])


def _sizes(side: int, skew: float) -> list[tuple[int, int]]:
    """Heights and widths, in pixels of the larger picture, that the smaller may take; always also a plain squash."""
    tallest = min(1.0, 1 / skew)
    sizes = {(round(side * s * tallest), round(side * s * tallest * skew)) for s in SCALES} | {(side, side)}
    return sorted(size for size in sizes if min(size) >= side // 4)


def _look_closely(whole: Tensor, part: Tensor, mirrored: bool, size: tuple[int, int]) -> Tensor:
    """The similarity at full resolution, over sizes near `size`, [B]."""
    side = whole.shape[-1]
    part = part.flip(-1) if mirrored else part
    canvas, best = _detail(whole.mean(1)), torch.full((len(whole),), -1.0)
    for step in (-2, -1, 0, 1, 2):
        near = min(side, size[0] + step), min(side, round(size[1] * (size[0] + step) / size[0]))
        resized = _resize(part, near)
        template = _detail(resized.mean(1), BLUR)
        _, place = _correlate(canvas, template)
        best = torch.maximum(best, _agreement(whole, resized, canvas, template, place))
    return best


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _agreement(whole: Tensor, part: Tensor, canvas: Tensor, template: Tensor, place: Tensor) -> Tensor:
    """Mean of the agreement in detail and in the coarse pattern where `part` lies at `place`, [B]."""
    under = _cut(whole, place, part.shape[2:])
    detail = _median_block(_cut(canvas[:, None], place, part.shape[2:])[:, 0], template)
    return torch.where(detail > 0, (detail + _coarse(under, part)) / 2, detail)


def _cut(images: Tensor, place: Tensor, size: Sequence[int]) -> Tensor:
    rows = (place[:, :1] + torch.arange(size[0]))[:, None, :, None]
    columns = (place[:, 1:] + torch.arange(size[1]))[:, None, None, :]
    return images[
        torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[:, None, None], rows, columns
    ]


def _coarse(one: Tensor, two: Tensor) -> Tensor:
    """Correlation of light, and of colour unless one of them is grey, over a coarse grid, averaged, [B]."""
    light, colour, known = [], [], []
    for image in (one, two):
        grid = F.adaptive_avg_pool2d(image, COARSE)
        grid = grid - grid.mean((2, 3), keepdim=True)
        light.append(grid.mean(1).flatten(1))
        colour.append((grid - grid.mean(1, keepdim=True)).flatten(1))
        known.append(colour[-1].pow(2).mean(1) > GREY**2)
    both = known[0] & known[1]
    of_light, of_colour = F.cosine_similarity(light[0], light[1]), F.cosine_similarity(colour[0], colour[1])
    return torch.where(both, (of_light + of_colour) / 2, of_light)


def _detail(grey: Tensor, blur: float = 0) -> Tensor:
    """Grey levels minus their blurred self, compressed so that no edge outvotes the rest, in [-1, 1], [B, H, W]."""
    blur = blur or BLUR * grey.shape[-1] / 64
    blurred = _blur(grey.shape[1], blur) @ grey @ _blur(grey.shape[2], blur).T
    band = grey - blurred
    contrast = band.pow(2).mean((1, 2), keepdim=True).sqrt()
    return torch.where(contrast > FLAT, torch.tanh(band / (SOFT * contrast).clamp(min=1e-6)), 0.0)


@cache
def _blur(side: int, width: float) -> Tensor:
    """A Gaussian average over `width` pixels, [side, side]; weights that would lie outside go to those inside."""
    distance = torch.arange(side)[:, None] - torch.arange(side)[None, :]
    weights = torch.exp(-0.5 * (distance / width) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _correlate(canvas: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
    """Peak of the normalized cross-correlation over all places that fit, [B], and that place, [B, 2]."""
    side, (height, width) = canvas.shape[-1], template.shape[1:]
    spectra = torch.fft.rfft2(canvas) * torch.fft.rfft2(template, s=(side, side)).conj()
    rows, columns = side - height + 1, side - width + 1
    products = torch.fft.irfft2(spectra, s=(side, side))[:, :rows, :columns]
    energy = _running_sum(canvas**2, height, width).clamp(min=0.02 * height * width)
    length = template.pow(2).sum((1, 2)).clamp(min=0.02 * height * width)
    peak, place = (products / (energy * length[:, None, None]).sqrt()).flatten(1).max(1)
    return peak, torch.stack([place // columns, place % columns], 1)


def _running_sum(values: Tensor, height: int, width: int) -> Tensor:
    total = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
    upper, lower = total[:, :-height], total[:, height:]
    return lower[:, :, width:] - lower[:, :, :-width] - upper[:, :, width:] + upper[:, :, :-width]


def _median_block(under: Tensor, template: Tensor) -> Tensor:
    """Median over blocks of their correlation, [B]; flat blocks do not vote."""
    one, two = (F.unfold(image[:, None], BLOCK, stride=BLOCK) for image in (under, template))
    power = one.pow(2).sum(1), two.pow(2).sum(1)
    votes = (one * two).sum(1) / (power[0] * power[1]).clamp(min=1e-6).sqrt()
    seen = torch.maximum(*power) > QUIET * BLOCK**2
    median = torch.where(seen, votes, torch.nan).nanmedian(1).values
    return torch.where(seen.sum(1) >= VOTERS, median, 0.0).nan_to_num(0.0)
