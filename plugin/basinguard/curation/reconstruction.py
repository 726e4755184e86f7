"""Which of two copies shows more? The one that the other can be made of, pixel by pixel, and not the other way round.

A thumbnail is what its original gives when that is shrunk, and the original is not what the thumbnail gives. An
enlarged copy is what its original gives; shrunk again, it has lost some of it. Where each can be made of the other,
neither shows more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Edges = tuple[float, float, float, float]  # left, top, right and bottom in pixels
Shows = Literal["more", "less", "as much"]

MIDDLE = 384  # pixels of the middle that is made, as the file has them
METHODS = tuple(getattr(Image.Resampling, name) for name in ("BOX", "BILINEAR", "BICUBIC", "LANCZOS", "NEAREST"))
EXACT = 0.02  # levels up to which a copy was computed from the other
MARGIN = 1.2  # times the other error, from which one of two errors is larger
VISIBLE = 1.0  # levels; with smaller errors both ways nothing is lost that anyone sees
EMPTY, STRETCHED = 0.6, 0.8  # times what the other loses when shrunk, below which it was enlarged; or along one side
LARGEST = 4.0  # factor by which both are shrunk
BLURS = (1.5, 4.0)  # pixels; detail finer than each is compared
SHARPER, COHERENT = 1.1, 0.15  # times a blurred copy's detail that the other's is; compression and noise reach 1.0


def compare_detail(one: Image.Image, two: Image.Image, places: tuple[Edges, Edges], factors: Sequence[float]) -> Shows:
    """Whether the first of two grey copies shows more than the second, less, or as much.

    Args:
        one, two: grey copies, the same way up.
        places: of what both show, in each.
        factors: pixels along each side of that of the first over those of the second, of which one is above 1.
    """
    shrunk = reconstruction_error(one, places[0], two, places[1])
    enlarged = reconstruction_error(two, places[1], one, places[0])
    if enlarged <= EXACT or shrunk > MARGIN * enlarged:
        return "less"
    if enlarged > MARGIN * shrunk:
        return "more"
    if max(shrunk, enlarged) > VISIBLE and _emptier(
        one.crop(_middle(places[0])), two.crop(_middle(places[1])), factors
    ):
        return "less"  # what compression did hides what enlarging did
    return "as much"


def reconstruction_error(source: Image.Image, place: Edges, target: Image.Image, target_place: Edges) -> float:
    """How far the middle of a grey target is from what a grey source gives at its size, in levels (0 to 255).

    The best of the usual ways to resize counts, after light and contrast were fitted.
    """
    box = _middle(target_place)
    wanted = np.asarray(target.crop(box), np.float32)
    across = (place[2] - place[0]) / (target_place[2] - target_place[0])
    down = (place[3] - place[1]) / (target_place[3] - target_place[1])
    left, right = (place[0] + (x - target_place[0]) * across for x in (box[0], box[2]))
    top, bottom = (place[1] + (y - target_place[1]) * down for y in (box[1], box[3]))
    edges = max(0.0, left), max(0.0, top), min(float(source.width), right), min(float(source.height), bottom)
    size = box[2] - box[0], box[3] - box[1]
    made = (np.asarray(source.resize(size, method, box=edges), np.float32) for method in METHODS)
    return min(_unexplained(each, wanted) for each in made)


def is_blurred(one: Image.Image, two: Image.Image, places: tuple[Edges, Edges]) -> bool:
    """Whether the first of two grey copies of one size is a blurred second, and not one that compression made even."""
    box = _middle(places[0])
    left, top = (round(places[1][axis] + box[axis] - places[0][axis]) for axis in (0, 1))
    other = left, top, left + box[2] - box[0], top + box[3] - box[1]
    soft, sharp = (np.asarray(each.crop(cut), np.float32) for each, cut in ((one, box), (two, other)))
    return any(_is_sharper(_finer(sharp, blur), _finer(soft, blur)) for blur in BLURS)


def _finer(picture: NDArray[np.float32], blur: float) -> NDArray[np.float32]:
    return picture - gaussian_filter(picture, blur, truncate=3.0)


def _is_sharper(sharp: NDArray[np.float32], soft: NDArray[np.float32]) -> bool:
    """Whether the detail of one picture is that of the other, stronger; noise of its own makes it no stronger."""
    deviations = float(sharp.std()), float(soft.std())
    if min(deviations) <= EXACT:
        return False
    correlation = float((sharp * soft).mean() - sharp.mean() * soft.mean()) / (deviations[0] * deviations[1])
    return correlation > COHERENT and correlation * deviations[0] > SHARPER * deviations[1]


def _middle(place: Edges) -> tuple[int, int, int, int]:
    """Whole pixels of the middle of a place."""
    sides = []
    for low, high in ((place[0], place[2]), (place[1], place[3])):
        first, last = round(low), round(high)
        rest = max(0, last - first - MIDDLE) // 2
        sides.append((first + rest, min(last, first + rest + MIDDLE)))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def _unexplained(made: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The root mean square of what a line from the one to the other leaves, in levels."""
    made, wanted = made - made.mean(), wanted - wanted.mean()
    square = float((made * made).mean())
    gain = float((made * wanted).mean()) / square if square else 0.0
    return float(np.sqrt(np.mean((wanted - np.float32(gain) * made) ** 2)))


def _emptier(one: Image.Image, two: Image.Image, factors: Sequence[float]) -> bool:
    """Whether, along a side on which it has more pixels, the first holds nothing that the second cannot hold."""
    limit = STRETCHED if max(factors) > MARGIN * min(factors) else EMPTY
    return any(
        factor > 1 and _lost(one, min(factor, LARGEST), axis) < limit * _lost(two, min(factor, LARGEST), axis)
        for axis, factor in enumerate(factors)
    )


def _lost(picture: Image.Image, factor: float, axis: int) -> float:
    """What a grey picture loses, in units of its contrast, when its width (0) or height (1) is shrunk and enlarged."""
    size = list(picture.size)
    size[axis] = max(1, round(size[axis] / factor))
    again = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)
    before, after = np.asarray(picture, np.float32), np.asarray(again, np.float32)
    return float((before - after).std() / max(after.std(), 1e-3))
