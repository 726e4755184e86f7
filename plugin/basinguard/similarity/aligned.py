"""The offline detector that lays pictures over each other: coarse features propose, alignment decides.

What a sampler or an editor does to a picture (shift, crop, tint, grey, blur, too much guidance, the autoencoder's loss)
changes its colours and moves its parts a little, but leaves light and dark where they are relative to each other. A
picture is kept as one small map of its luminance without its surroundings. Coarse cells of the map, whole and through
five windows, find the most similar pictures of a gallery; each of these is laid over the map at every place where it
fits, in a few sizes, by normalised cross-correlation; at the best, one spoilt place may be left out, so that a logo
does not decide. Colour has no say: a recoloured copy is a copy, and so are two drawings that differ in nothing but
their colour.

What counts is how much more alike the best picture is than the next best: a stranger of a set of faces is like many of
them, a copy is like its original. Two versions of one picture in a set are no rivals: a copy of either is still found.

How well that works is measured by `recipes/studies/similarity_table.py`. Of 450 emoji 15 were called copies of one of
150 others: the same heart or square in another colour, a medal with another number. No threshold tells those from
copies that lost or changed their colour; where a set holds such pairs, take SSCD beside it, or `basinguard judge`.

Source: normalised cross-correlation by products of spectra: Lewis, "Fast Template Matching", Vision Interface (1995);
best against next best: Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 60 (2004), section 7.1,
softened: there the two are divided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.metric import Metric
from .embedder import check_images
from .matching import by_product
from .structure import to_canvas

NAME = "structure-aligned-v2"
MAP = 32  # cells on a side of a map
CELLS = 8  # on a side of a description that proposes
MARGIN = 4  # cells by which a picture may be shifted: an eighth of its side
SIZES = (32, 30, 29)  # cells that a crop takes of the whole: all, and what is left of 10 and 20 % of the area
WINDOW = 29  # cells of the five windows that a crop is recognised through
BLOCKS = 8  # on a side of an overlay
PLACE = 3  # blocks on a side of the one place that may be spoilt: a seventh of the picture
LOGO = 0.1  # what leaving it out costs
PROPOSED = 8  # pictures of a gallery that are laid over a query
RUNNER_UP = 0.75  # share of the next best similarity that tells nothing
SAME = 0.95  # overlay of two pictures of a gallery that are versions of one
FAR = 0.3  # less than the best that such a version may have with a query
SURROUNDINGS = 8.0  # pixels of the canvas of 64 that luminance is compared with
FADING = 0.3  # length of a map at which it counts half
FAINT = 0.01  # contrast below which a map fades out instead of amplifying noise
STRONG = 1.5  # times the contrast at which luminance is compressed, so that no edge outvotes the rest
PAIRS = 1024  # laid over each other at once

METRIC = Metric(
    embedder=NAME,
    threshold=0.75,
    source="0.999 quantile (0.716 [0.664, 0.746], upper end rounded up) of the best mirror-aware match of a fresh "
    "TinyWorld scene against 32 others, one with the same caption; n=1600 scenes, 50 sets; "
    "recipes/studies/similarity_nulls.py scenes aligned. "
    "Other kinds of image need their own null: basinguard.similarity.thresholds",
)


@dataclass(frozen=True)
class Aligned:
    """Embedder without weights whose search lays pictures over each other.

    Example:
        >>> image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> image = F.interpolate(image[..., :8, :8], (64, 64), mode="bilinear")
        >>> gallery, shifted = Aligned()(image), Aligned()(image.roll(3, -1))
        >>> bool(Aligned().search(shifted, gallery, 1)[0] > 0.8)
        True
    """

    metric: Metric = METRIC

    @property
    def name(self) -> str:
        """Embedder and version."""
        return self.metric.embedder

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B, 1408] of images [B, 3, H, W] in [0, 1], sides of 16 pixels at least: descriptions and map."""
        maps = luminance_map(to_canvas(check_images(images)))
        return torch.cat([descriptions(maps).flatten(1), maps.flatten(1)], 1)

    def features(self, vectors: Tensor) -> Tensor:
        """The whole picture's description, unit vectors [B, 64]."""
        return vectors[:, : CELLS**2]

    def compare(self, queries: Tensor, entries: Tensor) -> Tensor:
        """The similarity of each query to the entry in the same row, alone, [N]; vectors of both, [N, 1408]."""
        rows = torch.arange(len(queries))
        return overlay_scores(_maps_of(queries), _maps_of(entries), rows, rows)

    def search(self, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` best of the pictures that descriptions propose, both [N, at most 8].

        The order is that of the overlays; the similarities are relative to the next best, see `relative`. So the second
        has the one that it would have as the first, were the first not there.
        """
        proposed = gallery_candidates(queries, gallery, min(PROPOSED, len(gallery)))
        rows = torch.arange(len(queries)).repeat_interleave(proposed.shape[1])
        similarity = overlay_scores(_maps_of(queries), _maps_of(gallery), rows, proposed.flatten()).view_as(proposed)
        best = similarity.sort(dim=1, descending=True)
        entries = proposed.gather(1, best.indices)
        shown = min(k, entries.shape[1])
        beside = [runner_up(best.values, entries, gallery, place) for place in range(shown)]
        return relative(best.values[:, :shown], torch.stack(beside, 1)), entries[:, :shown]


def relative(best: Tensor, runner_up: Tensor) -> Tensor:
    """A similarity beside the next best one: 1 stays 1, and without a next best one nothing changes.

    Example:
        >>> relative(torch.tensor([1.0, 0.9, 0.9]), torch.tensor([1.0, 0.9, 0.0])).round(decimals=2).tolist()
        [1.0, 0.69, 0.9]
    """
    common = RUNNER_UP * runner_up.clamp(0, 1)
    return (best - common) / (1 - common)


def runner_up(values: Tensor, entries: Tensor, gallery: Tensor, place: int) -> Tensor:
    """The best similarity behind a place that is of another picture than the entry there, [N]; 0 where there is none.

    Args:
        values, entries: overlays of queries in falling order, and the gallery's entries they are with, [N, K].
        gallery: vectors of `Aligned`, [M, D].
        place: in the order.
    """
    behind, others = values[:, place + 1 :], entries[:, place + 1 :]
    near = torch.nonzero(behind > values[:, place, None] - FAR)  # a version of one picture cannot lie further behind
    if not len(near):
        return behind.amax(1).clamp(min=0) if behind.numel() else torch.zeros_like(values[:, 0])
    rows, columns = near.unbind(1)
    used, first = torch.unique(entries[rows, place], return_inverse=True)
    same = torch.zeros_like(others, dtype=torch.bool)
    same[rows, columns] = (
        overlay_scores(_maps_of(gallery[used]), _maps_of(gallery), first, others[rows, columns]) >= SAME
    )
    return behind.masked_fill(same, 0).amax(1).clamp(min=0)


def luminance_map(canvas: Tensor) -> Tensor:
    """Luminance against its surroundings, compressed, of canvases [B, 3, 64, 64]: [B, 32, 32], faint ones near 0."""
    grey = canvas.mean(1)
    rows = _gaussian(grey.shape[-1], SURROUNDINGS)
    band = F.avg_pool2d(grey - rows @ grey @ rows.T, grey.shape[-1] // MAP)
    contrast = band.pow(2).mean((1, 2), keepdim=True).sqrt()
    small = torch.tanh(band / (STRONG * contrast + FAINT))
    return small / (small.flatten(1).norm(dim=1)[:, None, None] + FADING)


def descriptions(maps: Tensor) -> Tensor:
    """Blurred cells of the whole and of five windows, unit vectors [B, 6, 64]."""
    corner, middle = MAP - WINDOW, (MAP - WINDOW) // 2
    places = [(0, 0), (0, corner), (corner, 0), (corner, corner), (middle, middle)]
    windows = [maps, *(maps[..., y : y + WINDOW, x : x + WINDOW] for y, x in places)]
    cells = torch.stack([_cells(window).flatten(1) for window in windows], 1)
    return cells / (cells.norm(dim=2, keepdim=True) + 1e-6)


def _cells(window: Tensor) -> Tensor:
    return F.interpolate(window[:, None], (CELLS, CELLS), mode="bilinear", antialias=True)


def gallery_candidates(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """The pictures of a gallery whose whole or window is most like each query, indices [N, count].

    Both are vectors of `Aligned`, [N, D] and [M, D].
    """
    length = CELLS**2
    whole = queries[:, :length]
    views = gallery[:, : 6 * length].reshape(len(gallery) * 6, length)
    indices = by_product(whole, views, min(6 * count, len(views)))[1] // 6
    return torch.stack([_first_different(row, count, len(gallery)) for row in indices])


def _first_different(row: Tensor, count: int, entries: int) -> Tensor:
    """The first `count` different numbers of a row; numbers that it lacks fill it up."""
    first = list(dict.fromkeys(row.tolist()))[:count]
    rest = (index for index in range(entries) if index not in first)
    return torch.tensor(first + [next(rest) for _ in range(count - len(first))])


def _maps_of(vectors: Tensor) -> Tensor:
    return vectors[:, 6 * CELLS**2 :].reshape(-1, MAP, MAP)


@torch.no_grad()
def overlay_scores(queries: Tensor, entries: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """How well each query lies on an entry at the best place and size, [P] in [-1, 1].

    Args:
        queries, entries: maps, [N, 32, 32] and [M, 32, 32].
        rows, columns: which of either make a pair, [P].
    """
    used, columns = torch.unique(columns, return_inverse=True)
    canvas = F.pad(entries[used][:, None], (MARGIN,) * 4, mode="replicate")[:, 0]
    pieces = {size: _resized(queries, size) for size in SIZES}
    spectra, inverse = torch.fft.rfft2(canvas), {size: _inverse_lengths(canvas, size) for size in SIZES}
    similarity = torch.empty(len(rows))
    for part in torch.arange(len(rows)).split(PAIRS):
        similarity[part] = _best_overlay(canvas, spectra, inverse, pieces, rows[part], columns[part])
    return similarity


def _best_overlay(
    canvas: Tensor,
    spectra: Tensor,
    inverse: dict[int, Tensor],
    pieces: dict[int, Tensor],
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    peaks, places = [], []
    for size, piece in pieces.items():
        spectrum = torch.fft.rfft2(piece, s=canvas.shape[-2:]).conj()
        side = canvas.shape[-1] - size + 1
        products = torch.fft.irfft2(spectra[columns] * spectrum[rows], s=canvas.shape[-2:])
        peak, place = (products[:, :side, :side] * inverse[size][columns]).flatten(1).max(1)
        peaks.append(peak / piece.flatten(1).norm(dim=1)[rows].clamp(min=1e-3))
        places.append(place)
    chosen, best = torch.stack(peaks).argmax(0), torch.empty(len(rows))
    for number, (size, piece) in enumerate(pieces.items()):
        where = torch.nonzero(chosen == number)[:, 0]
        if len(where):
            windows = _windows(canvas[columns[where]], places[number][where], size)
            best[where] = torch.stack([_agreement(piece[rows[where]], window) for window in windows]).amax(0)
    return best


def _agreement(piece: Tensor, window: Tensor) -> Tensor:
    """Share of the energy of overlaid maps [B, S, S] that they have in common, [B]; one spoilt place may be left out.

    A logo spoils one place and nothing else. Leaving out the worst place costs `LOGO`, so that strangers gain little.
    """
    piece, window = (x / x.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-3) for x in (piece, window))
    energy, common = _by_block(piece**2 + window**2), _by_block(2 * piece * window)
    spoilt, at = _by_place(energy - common).max(1)
    lost = _by_place(energy).gather(1, at[:, None])[:, 0]
    all_energy, all_common = energy.sum((1, 2)).clamp(min=1e-6), common.sum((1, 2))
    rest = (all_common - (lost - spoilt)) / (all_energy - lost).clamp(min=1e-6)
    return torch.maximum(all_common / all_energy, rest - LOGO)


def _by_block(maps: Tensor) -> Tensor:
    """Means of 8 x 8 blocks of maps [B, S, S]."""
    return F.adaptive_avg_pool2d(maps[:, None], BLOCKS)[:, 0]


def _by_place(blocks: Tensor) -> Tensor:
    """Sums over every 3 x 3 neighbouring blocks, [B, 36]."""
    return F.avg_pool2d(blocks[:, None], PLACE, 1).flatten(1) * PLACE**2


def _windows(canvas: Tensor, place: Tensor, size: int) -> Iterator[Tensor]:
    """What each canvas [B, S, S] has under a piece at its place and half a cell around it, nine of [B, size, size].

    Places are counted row by row. Halfway between two cells is their mean.
    """
    side = canvas.shape[-1] - size + 1
    right = torch.cat([canvas[..., 1:], canvas[..., -1:]], 2)
    lower, diagonal = (torch.cat([x[:, 1:], x[:, -1:]], 1) for x in (canvas, right))
    between = {0: canvas, 1: (canvas + right) / 2, 2: (canvas + lower) / 2, 3: (canvas + right + lower + diagonal) / 4}
    y, x = place // side, place % side
    for half_down, half_across in product((-1, 0, 1), repeat=2):
        top, left = (y + min(half_down, 0)).clamp(min=0), (x + min(half_across, 0)).clamp(min=0)
        down, across = top[:, None] + torch.arange(size), left[:, None] + torch.arange(size)
        rows = torch.arange(len(canvas))[:, None, None]
        yield between[2 * abs(half_down) + abs(half_across)][rows, down[:, :, None], across[:, None, :]]


def _inverse_lengths(canvas: Tensor, size: int) -> Tensor:
    """One over the length of what lies under a piece at each place, [M, places, places]."""
    sums = F.pad(canvas.pow(2).cumsum(1).cumsum(2), (1, 0, 1, 0))
    energy = sums[:, size:, size:] - sums[:, :-size, size:] - sums[:, size:, :-size] + sums[:, :-size, :-size]
    return energy.clamp(min=1e-3).rsqrt()


def _resized(maps: Tensor, size: int) -> Tensor:
    if size == MAP:
        return maps
    return F.interpolate(maps[:, None], (size, size), mode="bilinear", antialias=True)[:, 0]


@cache
def _gaussian(side: int, width: float) -> Tensor:
    """Weights of a Gaussian average over `width` pixels, [side, side]."""
    distance = torch.arange(side)[:, None] - torch.arange(side)[None]
    weights = torch.exp(-0.5 * (distance / width) ** 2)
    weights = torch.where(weights < 1e-6, 0.0, weights)  # numbers near 1e-40 multiply a hundred times slower
    return weights / weights.sum(1, keepdim=True)
