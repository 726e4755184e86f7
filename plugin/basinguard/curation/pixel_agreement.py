"""Where do two pictures differ once one lies on the other, and is that something laid over one of them?

Both are compared at the resolution of the coarser one, which may also be the more blurred one. What is left above the
noise of the pair, in one place, is a difference: a hand of a clock, a word, a smile. Only where a picture has detail
of its own nearly everywhere may a difference be a logo or a bar of text: something flat with a sharp border that only
one of the two has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_erosion, binary_fill_holes, gaussian_filter, label

from .colour_match import LUMA, Pixels
from .pooling import block_means, even_edges, highest, lowest, pooled, spread_out, widest

LEAST, MOST = 12.0, 18.0  # levels that count as a difference, in a pair without noise and in any pair
EDGE = 0.3  # of the contrast of an edge that both have
CHROMA = RIM = 4  # pixels; files keep colour more coarsely than light, so a frame's bleeds into the rim of a picture
SAVED, UNTOUCHED = 2.0, 0.01  # levels, and the share of pixels that may be off by more in files saved without loss
PEAK = 2.0  # times that, which some pixel of a differing place must reach
NOISES, USUAL = 4.0, 0.95  # times a quantile of the residuals, which compression raises
PLACE = 12.0  # differences in one place, in units of the least that counts, from which it is no accident
TINT = 12.0  # levels by which the mean colour of a cell may be off
CELL, SMALLEST_CELL = 24, 16  # cells on the longer side for colours; pixels of one, as compression has them
VIEW_SIDE = 256  # pixels of the longer side at which an overlay is judged
BLURS = (0.5, 0.8, 1.2, 1.6, 2.0, 2.6, 3.2)  # pixels
SHARPER = 1.15  # times the fine detail from which one picture is blurred to the other
SMALLEST_OVERLAY, LARGEST_OVERLAY = 0.01, 0.3  # of the area; what is smaller may be a bird, a button, a mole
JOINED = 0.015  # of the side; letters nearer to each other are one overlay
RICH = 0.5  # share of the blocks outside an overlay that must have detail
BLOCK = 16  # pixels
DRAWN, TONES = 0.75, 8  # share of a picture in so many of its colours from which it is drawn, not photographed
DETAIL = 1.5  # levels off a slope in a block that is neither flat nor a gradient
ONE_SIDED = 2.0  # times as much contrast along its border as the other picture has there
FLAT, LEVELS = 0.85, 5.0  # share of an overlay in its two commonest colours, which vary by a few levels


@dataclass(frozen=True)
class Difference:
    """What two aligned pictures do not share.

    Attributes:
        share: part of the area that differs, 0 to 1.
        overlay: 0 or 1, the picture that has something laid over it, where that is all; None otherwise.
    """

    share: float
    overlay: int | None = None


def pixel_difference(one: Pixels, two: Pixels) -> Difference:
    """What differs between two aligned pictures, [H, W, 3], whose colours were matched."""
    with_rim = one, two
    originals = one, two = _without_rim(one), _without_rim(two)
    plain = widest(np.abs(one - two))
    untouched = float((plain > SAVED).mean()) <= UNTOUCHED  # no compression and no shift, so nothing excuses a letter
    places = _places(plain if untouched else _residual(one, two), LEAST)
    if not untouched and places.any():  # what differs as they are may be blur or noise
        one, two = (_without_rim(each) for each in _equally_sharp(*with_rim))  # a blur takes from the rim
        residual = _residual(one, two)
        places = _places(residual, float(np.clip(NOISES * np.quantile(residual[::2, ::2], USUAL), LEAST, MOST)))
    places |= _other_colours(one, two, places)
    share = float(places.mean())
    if not share:
        return Difference(0.0)
    if share > LARGEST_OVERLAY:
        return Difference(share)
    return Difference(share, _overlay(*_smaller(one, two, places), _smaller(*originals, places)[:2]))


def _without_rim(picture: Pixels) -> Pixels:
    return picture[RIM:-RIM, RIM:-RIM]


def is_rich(one: Pixels, two: Pixels) -> bool:
    """Whether two aligned pictures [H, W, 3] have detail nearly everywhere, as photographs do and drawings do not."""
    one, two, places = _smaller(one, two, np.zeros(one.shape[:2], bool))
    return _rich(one, two, places)


def _smaller(one: Pixels, two: Pixels, places: NDArray[np.bool_]) -> tuple[Pixels, Pixels, NDArray[np.bool_]]:
    """All three averaged over squares of pixels, at least `VIEW_SIDE` on the longer side."""
    factor = max(one.shape) // VIEW_SIDE
    if factor < 2:
        return one, two, places
    height, width = (length // factor * factor for length in places.shape)
    one, two = (pooled(each[:height, :width], factor) for each in (one, two))
    return one, two, pooled(places[:height, :width].astype(np.float32), factor) > 0


def _residual(one: Pixels, two: Pixels) -> Pixels:
    """How far two pictures are apart at each pixel, [H, W], in light, or in colour more coarsely."""
    light = range_residual(one @ LUMA, two @ LUMA)
    colour = widest(range_residual(pooled(one, CHROMA), pooled(two, CHROMA)))
    return np.maximum(light, spread_out(colour, CHROMA, light.shape))


def range_residual(one: Pixels, two: Pixels) -> Pixels:
    """How far each of two pictures [H, W] or [H, W, C] leaves the range of the other's neighbours, the larger of both.

    A shift of one pixel costs nothing, an edge that both have may differ by a part of its contrast, as compression
    makes it, and a line that only one of them has costs all of it.
    """
    highs, lows = [highest(each) for each in (one, two)], [lowest(each) for each in (one, two)]
    outside = np.maximum(np.maximum(one - highs[1], lows[1] - one), np.maximum(two - highs[0], lows[0] - two))
    contrast = np.minimum(highs[0] - lows[0], highs[1] - lows[1])
    return (outside - np.float32(EDGE) * contrast).clip(0)


def _other_colours(one: Pixels, two: Pixels, places: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells whose mean colours differ, as they do not after compression, a shift or a blur, [H, W].

    Cells beside a differing place are left out: that place explains them, and knows its border better.
    """
    side = max(SMALLEST_CELL, max(places.shape) // CELL)
    edges = even_edges(places.shape[0], side), even_edges(places.shape[1], side)
    covered = block_means(places.astype(np.float32), *edges) > 0
    cells = (widest(np.abs(block_means(one - two, *edges))) > TINT) & ~highest(covered)
    return cells.repeat(np.diff(edges[0]), 0).repeat(np.diff(edges[1]), 1)


def _equally_sharp(one: Pixels, two: Pixels) -> tuple[Pixels, Pixels]:
    """The sharper picture blurred as much as makes it most like the other."""
    grey = [_middle(each) @ LUMA for each in (one, two)]
    fine = [_typical(each - _blurred(each, 1.5)) for each in grey]
    if max(fine) <= SHARPER * min(fine):
        return one, two
    sharper = int(fine[1] > fine[0])
    sharp, soft = grey[sharper], grey[1 - sharper]
    blur = _best_blur(sharp, soft)
    both = [one, two]
    both[sharper] = _blurred(both[sharper], blur) if blur else both[sharper]
    return both[0], both[1]


def _best_blur(sharp: Pixels, soft: Pixels) -> float:
    """The blur that makes one picture most like another, 0 for none: they are tried until it gets worse."""
    best, least = 0.0, _typical(sharp - soft)
    for blur in BLURS:
        error = _typical(_blurred(sharp, blur) - soft)
        if error >= least:
            break
        best, least = blur, error
    return best


def _typical(values: Pixels) -> float:
    """Mean size of values of which a few are of something else."""
    return float(np.minimum(np.abs(values), 4 * LEAST).mean())


def _middle(picture: Pixels) -> Pixels:
    """Enough of a picture to see how sharp it is."""
    top, left = (max(0, (length - VIEW_SIDE) // 2) for length in picture.shape[:2])
    return picture[top : top + VIEW_SIDE, left : left + VIEW_SIDE]


def _blurred(picture: Pixels, width: float) -> Pixels:
    """A Gaussian blur of [H, W] or [H, W, C]."""
    return gaussian_filter(picture, width, axes=(0, 1), truncate=3.0, mode="nearest")


def _places(residual: Pixels, least: float) -> NDArray[np.bool_]:
    """Where differences add up to something, [H, W]."""
    labels, count = label(residual > least, np.ones((3, 3)))
    if not count:
        return np.zeros(residual.shape, bool)
    above = labels > 0
    numbers, values = labels[above], residual[above]
    peaks = np.zeros(count + 1, np.float32)
    np.maximum.at(peaks, numbers, values)
    counts = np.bincount(numbers, values, count + 1) >= PLACE * least
    counts &= peaks >= PEAK * least
    return counts[labels]


def _overlay(one: Pixels, two: Pixels, places: NDArray[np.bool_], originals: tuple[Pixels, Pixels]) -> int | None:
    """Which picture has all the differing places laid over it, if that is what they are; originals are not blurred."""
    reach = max(1, round(JOINED * max(places.shape)))
    padded = np.pad(places, reach)
    joined = binary_fill_holes(binary_closing(padded, iterations=reach))[reach:-reach, reach:-reach] | places
    if not SMALLEST_OVERLAY <= joined.mean() <= LARGEST_OVERLAY or not _rich(one, two, joined):
        return None
    labels, count = label(joined)
    side = _side(one, two, labels == 1)
    if side is None or any(_side(one, two, labels == number) != side for number in range(2, count + 1)):
        return None
    return side if _flat(originals[side], joined) else None


def _rich(one: Pixels, two: Pixels, places: NDArray[np.bool_]) -> bool:
    """Whether most blocks outside the differing places have detail in both pictures."""
    height, width = (length // BLOCK * BLOCK for length in places.shape)
    if not height or not width:
        return False

    def blocks(values: NDArray) -> NDArray:
        return values[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)

    outside = ~blocks(places).any((1, 3))
    contrast = np.minimum(*(_off_plane(blocks(each @ LUMA)) for each in (one, two)))
    detailed = outside.any() and float((contrast[outside] > DETAIL).mean()) >= RICH
    sampled = np.flatnonzero(~places)[::4]
    return bool(detailed) and not any(_drawn(each.reshape(-1, 3)[sampled]) for each in (one, two))


def _off_plane(blocks: Pixels) -> Pixels:
    """How far blocks [H, 16, W, 16] are from slopes, [H, W], as a standard deviation: a gradient is no detail."""
    centred = blocks - blocks.mean((1, 3), keepdims=True)
    along = np.linspace(-1, 1, BLOCK, dtype=np.float32)
    square = BLOCK * float((along * along).sum())
    down, across = (np.tensordot(centred, along, (axis, 0)).sum(-1 if axis == 1 else 1) for axis in (1, 3))
    explained = (down**2 + across**2) / square / BLOCK**2
    return np.sqrt(np.maximum(0, np.square(centred).mean((1, 3)) - explained))


def _drawn(pixels: Pixels) -> bool:
    """Whether a few colours are nearly all there is to pixels [N, 3]."""
    counts = np.sort(np.bincount(_bins(pixels)))
    return bool(counts[-TONES:].sum() >= DRAWN * len(pixels))


def _bins(pixels: Pixels) -> NDArray[np.int64]:
    """The number of the bin, 8 levels wide, of each colour [N, 3], [N]."""
    red, green, blue = (pixels.T.clip(0, 255) / 8).astype(np.int64)
    return red + 32 * green + 1024 * blue


def _side(one: Pixels, two: Pixels, place: NDArray[np.bool_]) -> int | None:
    """Which picture has an edge along the border of a place, if only one has."""
    border = place & ~binary_erosion(place, iterations=2, border_value=1)
    border |= ~place & ~binary_erosion(~place, iterations=2, border_value=1)
    if not border.any():
        return None
    edges = [float(np.hypot(*np.gradient(each @ LUMA))[border].mean()) for each in (one, two)]
    if max(edges) < ONE_SIDED * min(edges):
        return None
    return int(edges[1] > edges[0])


def _flat(picture: Pixels, places: NDArray[np.bool_]) -> bool:
    """Whether the places hold two colours and little else, as a bar with letters does and nothing photographed."""
    core = binary_erosion(places, iterations=2)
    left = picture[core if core.any() else places]
    total, covered = len(left), 0
    for _ in range(2):
        if not len(left):
            break
        bins = _bins(left)
        centre = left[bins == np.bincount(bins).argmax()].mean(0)
        near = widest(np.abs(left - centre)) <= LEVELS
        covered, left = covered + int(near.sum()), left[~near]
    return covered >= FLAT * total
