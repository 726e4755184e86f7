"""Which copies were enlarged or stretched from another one: they have more pixels than that and show no more.

A picture that was enlarged holds next to nothing in the finest detail that its pixels could hold. So what two copies
lose when both are shrunk by the factor between them is compared, along each side on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageOps

from ..core.images import BadImage, load_rgb
from .picture_quality import MIDDLE, UNFRAMED, Quality
from .placement import Placement
from .scan import Scan, inside_frame

MORE = 1.05  # times the pixels along a side from which they are compared
EMPTY = 0.6  # times what the other loses, up to which it was enlarged: those lose 0.23 to 0.5, others 0.77 up
STRETCHED = 0.8  # the same where their proportions differ, so that one of them was stretched or squeezed
TINTED = 4.0  # levels by which the mean colour may differ from that of most copies
LARGEST = 4.0  # factor by which both are shrunk
COMPARED = 4  # other copies, the best ones
SMALLEST = 32  # pixels of the side of what is compared


Pictures = Callable[[int], Image.Image | None]  # row -> what lies inside its frame, grey


@dataclass(frozen=True)
class Sight:
    """What one copy shows of the common picture.

    Attributes:
        left, top, right, bottom: that, in the units of the copy that all were placed in.
        width, height: pixels of it inside its frame.
        mirrored: it shows that flipped left to right.
    """

    left: float
    top: float
    right: float
    bottom: float
    width: float
    height: float
    mirrored: bool

    @property
    def density(self) -> tuple[float, float]:
        """Pixels along each side of the common picture."""
        return self.width / (self.right - self.left), self.height / (self.bottom - self.top)


def true_details(scan: Scan, qualities: Mapping[int, Quality], places: Mapping[int, Placement]) -> dict[int, Quality]:
    """Qualities of copies with `shown`, `usual_way` and `usual_colours` set, the former for the best ones.

    Args:
        scan: what the copies are rows of.
        qualities: of each copy.
        places: of those that were laid over each other, see `placement.placements`.
    """
    sights = {row: _sight(scan, row, place) for row, place in places.items() if row in qualities}
    ways = Counter(sight.mirrored for sight in sights.values())
    colours = {row: scan.thumbs[row].mean((0, 1)) for row in qualities}
    usual = np.median(list(colours.values()), axis=0)
    marked = {
        row: replace(
            quality,
            usual_way=row not in sights or 2 * ways[sights[row].mirrored] >= len(sights),
            usual_colours=bool(np.abs(colours[row] - usual).max() <= TINTED),
        )
        for row, quality in qualities.items()
    }
    checked: set[int] = set()
    pictures = lru_cache(COMPARED + 1)(partial(_grey, scan))
    while True:
        best = max(marked, key=lambda row: marked[row].rank)
        if best in checked or best not in sights:
            return marked
        checked.add(best)
        shown = _shown(pictures, best, sights, marked)
        if shown is not None:
            marked[best] = replace(marked[best], shown=shown)


def _sight(scan: Scan, row: int, place: Placement) -> Sight:
    facts, aspect = scan.items[row].facts, float(scan.aspects[row])
    area = facts.width * facts.height * float(scan.inside[row])
    left, right = sorted((place.left, place.left + place.across))
    width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    return Sight(left, place.top, right, place.top + place.down, width, height, place.across < 0)


def _shown(pictures: Pictures, best: int, sights: Mapping[int, Sight], qualities: Mapping[int, Quality]) -> int | None:
    """Pixels that the best copy truly shows, if it was enlarged or stretched from one of the others."""
    mine = sights[best]
    plain = [row for row in sights if row != best and qualities[row].single and qualities[row].uncovered]
    for other in sorted(plain, key=lambda row: qualities[row].rank, reverse=True)[:COMPARED]:
        factors = [a / b for a, b in zip(mine.density, sights[other].density, strict=True)]
        if max(factors) <= MORE:
            continue
        empty = _emptier(pictures, (best, other), sights, factors)
        if any(empty):
            size = zip((mine.width, mine.height), factors, empty, strict=True)
            width, height = (length / factor if is_empty else length for length, factor, is_empty in size)
            return int(width * height)
    return None


def _emptier(
    pictures: Pictures, rows: tuple[int, int], sights: Mapping[int, Sight], factors: list[float]
) -> tuple[bool, bool]:
    """Along each side, whether the first of two copies holds nothing that the second cannot hold."""
    both = _common(*(sights[row] for row in rows))
    cuts = [_cut(pictures(row), sights[row], both) for row in rows]
    if any(cut is None or min(cut.size) < SMALLEST for cut in cuts):
        return False, False
    one, two = (cut for cut in cuts if cut is not None)
    empty = STRETCHED if max(factors) > MORE * min(factors) else EMPTY
    across, down = (
        factor > MORE and _lost(one, min(factor, LARGEST), axis) < empty * _lost(two, min(factor, LARGEST), axis)
        for axis, factor in enumerate(factors)
    )
    return across, down


def _common(one: Sight, two: Sight) -> tuple[float, float, float, float]:
    """What both show."""
    left, top = max(one.left, two.left), max(one.top, two.top)
    return left, top, min(one.right, two.right), min(one.bottom, two.bottom)


def _grey(scan: Scan, row: int) -> Image.Image | None:
    """What lies inside the frame of a copy, grey."""
    try:
        picture = load_rgb(scan.items[row].path)
    except BadImage:
        return None
    if float(scan.inside[row]) <= UNFRAMED:
        picture = picture.crop(inside_frame(picture))
    return picture.convert("L")


def _cut(picture: Image.Image | None, sight: Sight, both: tuple[float, float, float, float]) -> Image.Image | None:
    """The part of a grey copy that both show, or the middle of it."""
    if picture is None:
        return None
    picture = ImageOps.mirror(picture) if sight.mirrored else picture
    across, down = picture.width / (sight.right - sight.left), picture.height / (sight.bottom - sight.top)
    edges = [
        (both[0] - sight.left) * across,
        (both[1] - sight.top) * down,
        (both[2] - sight.left) * across,
        (both[3] - sight.top) * down,
    ]
    x, y = (edges[0] + edges[2]) / 2, (edges[1] + edges[3]) / 2
    wide, high = min(MIDDLE, edges[2] - edges[0]) / 2, min(MIDDLE, edges[3] - edges[1]) / 2
    return picture.crop((round(x - wide), round(y - high), round(x + wide), round(y + high)))


def _lost(picture: Image.Image, factor: float, axis: int) -> float:
    """What a grey picture loses, in units of its contrast, when its width (0) or height (1) is shrunk and enlarged."""
    size = list(picture.size)
    size[axis] = max(1, round(size[axis] / factor))
    again = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC).resize(picture.size, Image.Resampling.BICUBIC)
    before, after = np.asarray(picture, np.float32), np.asarray(again, np.float32)
    return float((before - after).std() / max(after.std(), 1e-3))
