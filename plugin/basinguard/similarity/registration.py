"""Is one picture a piece of the other? Thumbnails laid over each other at every place, several sizes, and mirrored.

A hash or an embedding proposes pairs; this decides. Two photographs of one subject share colours and layout and so
resemble each other to any global descriptor, but only copies agree detail by detail once one is laid over the other
(`fit`). The best place is where the normalized cross-correlation of band-passed pictures peaks; it is searched at half
resolution first, and only a promising peak is looked at closely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .cross_correlation import Canvas, Pieces
from .overlay_fit import (
    BLOCK,
    BLUR,
    SIDE,
    Sketches,
    agreement,
    coarse,
    detail,
    fit_whole,
    joined,
    median_vote,
    thumbnails_tensor,
)

SIMILAR_WHOLE, SIMILAR_PART = 0.65, 0.85  # what an overlay must reach at share 1, and towards share 0
SCALES = (1.0, 0.93, 0.87, 0.81, 0.75, 0.7, 0.65, 0.6)  # share of the larger picture's height
NEAR = (-2, -1, 0, 1, 2)  # pixels of height around a promising size that are looked at closely
PROMISING = 0.36  # peak at half resolution: of 645 right pairs of generated pictures all had more, of wrong ones 1 in 4
CERTAIN = 0.9  # a whole fit this good needs no search
BATCH = 256
CLOSELY = 64  # pairs that are looked at at full resolution at once
ASPECT_STEP = 0.05  # pairs whose log aspect ratios differ by this much are laid over each other in one batch


Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Overlay:
    """How well the best overlay of a pair fits.

    Attributes:
        similarity: mean of the agreement in detail and in the coarse pattern, in [-1, 1]; 1 = the same picture.
        share: part of the larger picture's area that the smaller one covers, in (0, 1].
        mirrored: one of them is flipped left to right.
        swapped: the first of the pair lies in the second, not the second in the first.
        box: left, top, right, bottom of that place, as shares of the larger picture's sides.
    """

    similarity: float
    share: float
    mirrored: bool
    swapped: bool = False
    box: Box = WHOLE

    @property
    def fits(self) -> bool:
        """Whether this is one picture."""
        return self.similarity >= required_similarity(self.share)


def required_similarity(share: float) -> float:
    """What an overlay of this share must reach: a smaller piece was searched in more places, so it must fit better.

    Source: chosen on generated pictures with seeds of its own; `recipes/benchmarks/curate.py` measures it on others.
    """
    return SIMILAR_PART + (SIMILAR_WHOLE - SIMILAR_PART) * share


def whole_overlays(sketches: Sketches, pairs: NDArray[np.int64]) -> list[Overlay]:
    """Each pair laid over each other whole: a thousandth of the work of a search, and all that most copies need."""
    similarity, mirrored = fit_whole(sketches, pairs)
    return [Overlay(s, 1.0, m) for s, m in zip(similarity.tolist(), mirrored.tolist(), strict=True)]


def best_overlays(thumbs: NDArray[np.uint8], aspects: NDArray, pairs: NDArray[np.int64]) -> list[Overlay]:
    """The best overlay of each pair with one picture inside the other; similarity 0 where no place is promising.

    Args:
        thumbs: uint8 [N, 64, 64, 3], squashed to a square.
        aspects: width / height of each original, [N].
        pairs: indices, [P, 2].
    """
    best: list[Overlay] = [Overlay(0.0, 1.0, False)] * len(pairs)
    batches = list(_batches(aspects, pairs))
    with one_thread_each() as mapped:
        options = mapped(lambda batch: _promising(thumbs, pairs[batch[0]], batch[1]), batches)
        groups = _by_option((rows, each) for (rows, _), each in zip(batches, options, strict=True))
        results = mapped(lambda group: _laid_over(thumbs, pairs[group[1]], group[0]), groups)
        for (_, rows), overlays in zip(groups, results, strict=True):
            for row, overlay in zip(rows, overlays, strict=True):
                best[row] = overlay
    return best


@contextmanager
def one_thread_each() -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` over threads that each compute alone: these operations are too small to be shared between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def _batches(aspects: NDArray, pairs: NDArray) -> Iterator[tuple[NDArray, float]]:
    """Rows of `pairs` that share one ratio of aspects, and that ratio (second over first)."""
    steps = np.round(np.log(aspects[pairs[:, 1]] / aspects[pairs[:, 0]]) / ASPECT_STEP).astype(int)
    for step in np.unique(steps):
        rows = np.flatnonzero(steps == step)
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH], math.exp(step * ASPECT_STEP)


@dataclass(frozen=True)
class _Option:
    """One way to lay a pair over each other: which is the piece, its height and width, and whether it is mirrored."""

    swap: bool
    size: tuple[int, int]
    mirrored: bool


@torch.no_grad()
def _promising(thumbs: NDArray[np.uint8], pairs: NDArray[np.int64], skew: float) -> list[_Option | None]:
    """The option whose peak at half resolution is the highest, of each pair; None where it is low."""
    used, places = np.unique(pairs, return_inverse=True)
    small = F.avg_pool2d(thumbnails_tensor(thumbs[used]).mean(1), 2)
    options, peaks = _peaks(small, torch.from_numpy(places.reshape(-1, 2)), skew)
    best, chosen = peaks.max(0)
    return [
        options[number] if peak >= PROMISING else None
        for peak, number in zip(best.tolist(), chosen.tolist(), strict=True)
    ]


def _by_option(options: Iterable[tuple[NDArray, list[_Option | None]]]) -> list[tuple[_Option, list[int]]]:
    """Rows of the pairs that share an option, few enough to be looked at at once."""
    rows_of: dict[_Option, list[int]] = {}
    for rows, chosen in options:
        for row, option in zip(rows.tolist(), chosen, strict=True):
            if option is not None:
                rows_of.setdefault(option, []).append(row)
    return [
        (option, rows[start : start + CLOSELY])
        for option, rows in rows_of.items()
        for start in range(0, len(rows), CLOSELY)
    ]


@torch.no_grad()
def _laid_over(thumbs: NDArray[np.uint8], pairs: NDArray[np.int64], option: _Option) -> list[Overlay]:
    """The overlay of each pair under one option, at full resolution."""
    sides = pairs[:, ::-1] if option.swap else pairs
    whole, part = (thumbnails_tensor(thumbs[side]) for side in sides.T)
    similarity, boxes = _full_similarity(whole, part.flip(-1) if option.mirrored else part, option.size)
    share = option.size[0] * option.size[1] / SIDE**2
    return [
        Overlay(value, share, option.mirrored, option.swap, (left, top, right, bottom))
        for value, (left, top, right, bottom) in zip(similarity.tolist(), boxes.tolist(), strict=True)
    ]


def _peaks(small: Tensor, ends: Tensor, skew: float) -> tuple[list[_Option], Tensor]:
    """How well each pair fits under each option at half resolution, [options, P]; `small` is grey, [U, 32, 32].

    The canvas is mirrored, not the piece: its spectrum serves every size.
    """
    canvas = detail(small, BLUR / 2)
    pictures = Canvas(torch.stack([canvas, canvas.flip(-1)], 1))
    pieces: dict[tuple[int, int], Pieces] = {}
    options: list[_Option] = []
    peaks: list[Tensor] = []
    for swap in (False, True):
        whole, part = ends.flip(1).unbind(1) if swap else ends.unbind(1)
        for size in _sizes(1 / skew if swap else skew):
            half = size[0] // 2, size[1] // 2
            if half not in pieces:
                pieces[half] = pictures.pieces(detail(_resize(small, half), BLUR / 2))
            values = pictures.correlate(whole, pieces[half], part)
            options += [_Option(swap, size, mirrored) for mirrored in (False, True)]
            peaks += values.flatten(2).amax(2).unbind(1)
    return options, torch.stack(peaks)


def _sizes(skew: float) -> list[tuple[int, int]]:
    """Heights and widths, in pixels of the larger picture, that the smaller may take; always also a plain squash."""
    tallest = min(1.0, 1 / skew)
    sizes = {(round(SIDE * s * tallest), round(SIDE * s * tallest * skew)) for s in SCALES} | {(SIDE, SIDE)}
    return sorted(size for size in sizes if min(size) >= SIDE // 4)


def _full_similarity(whole: Tensor, part: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The similarity at full resolution of pictures [B, 3, 64, 64], the best over sizes near `size`, and its place.

    Returns:
        Similarities [B] and boxes [B, 4], see `Overlay.box`.
    """
    grey, patterns, every = part.mean(1), coarse(part), torch.arange(len(whole))
    canvas, best, boxes = detail(whole.mean(1)), torch.full((len(whole),), -1.0), torch.zeros(len(whole), 4)
    colours, pictures = whole.permute(0, 2, 3, 1), Canvas(canvas[:, None])
    for step in NEAR:
        near = min(SIDE, size[0] + step), min(SIDE, round(size[1] * (size[0] + step) / size[0]))
        piece = detail(_resize(grey, near), BLUR)
        place = pictures.correlate(every, pictures.pieces(piece), every).flatten(1).argmax(1)
        at = _window(place, near)
        agreed = median_vote(_blocks(canvas[at]), _blocks(piece))
        patterns_under = coarse(colours[at].permute(0, 3, 1, 2))
        similarity = joined(agreed, agreement(patterns_under, patterns))
        boxes = torch.where((similarity > best)[:, None], _box(place, near), boxes)
        best = torch.maximum(best, similarity)
    return best, boxes


def _box(place: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a piece of this size lies, [B, 4], see `Overlay.box`."""
    columns = SIDE - size[1] + 1
    top, left = place // columns, place % columns
    return torch.stack([left, top, left + size[1], top + size[0]], 1) / SIDE


def _window(place: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Index of each picture's window of this size at its place, which is counted row by row, [B, H, W]."""
    columns = SIDE - size[1] + 1
    down = (place // columns)[:, None] + torch.arange(size[0])
    across = (place % columns)[:, None] + torch.arange(size[1])
    return torch.arange(len(place))[:, None, None], down[:, :, None], across[:, None, :]


def _blocks(images: Tensor) -> Tensor:
    """Whole blocks of images [B, H, W], [B, blocks, pixels]."""
    return F.unfold(images[:, None], BLOCK, stride=BLOCK).transpose(1, 2)


def _resize(grey: Tensor, size: tuple[int, int]) -> Tensor:
    """Square images [B, S, S] at another size, antialiased, as two products with small matrices."""
    tall, wide = (_shrinking(grey.shape[1], length) for length in size)
    return tall @ (grey @ wide.T)


@cache
def _shrinking(side: int, length: int) -> Tensor:
    """Weights of `side` pixels for each of `length`, [length, side]: linear, and averaging where it shrinks."""
    rows = torch.eye(side)[None, None]
    return F.interpolate(rows, (side, length), mode="bilinear", antialias=True)[0, 0].T.contiguous()
