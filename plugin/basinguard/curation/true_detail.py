"""Which copies were enlarged, stretched or blurred: they have as many pixels as another one and show no more.

Copies are laid over each other as pairs placed them, and what each shows of the common picture is compared, see
`reconstruction`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageOps

from ..core.images import BadImage, load_rgb
from .picture_quality import SHAPE, TINTED, UNFRAMED, Quality, most_alike
from .placement import Placement
from .reconstruction import Edges, compare_detail, is_blurred
from .scan import Scan, inside_frame

MORE = 1.05  # times the pixels along a side from which they are more
COMPARED = 8  # other copies, one of each size and two of the same
SMALLEST = 32  # pixels of the side of what is compared
RIM = 1.0  # pixels by which a copy that shows all of another may seem not to


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

    @property
    def shape(self) -> float:
        """Its proportions against those of the common picture, as a logarithm."""
        across, down = self.density
        return float(np.log(across / down))


def true_details(scan: Scan, qualities: Mapping[int, Quality], places: Mapping[int, Placement]) -> dict[int, Quality]:
    """Qualities of copies with `shown` and the four that say what is usual set, the former for the best ones.

    Args:
        scan: what the copies are rows of.
        qualities: of each copy.
        places: of those that were laid over each other, see `placement.placements`.
    """
    sights = {row: _sight(scan, row, place) for row, place in places.items() if row in qualities}
    marked = _with_usual(scan, qualities, sights)
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


def _with_usual(scan: Scan, qualities: Mapping[int, Quality], sights: Mapping[int, Sight]) -> dict[int, Quality]:
    """Qualities that say whether each copy is as most are: not flipped, not stretched, of the same colours."""
    ways = Counter(sight.mirrored for sight in sights.values())
    shapes = np.array([sight.shape for sight in sights.values()])
    colours = np.stack([scan.thumbs[row].mean((0, 1)) for row in qualities])
    marked = {}
    for (row, quality), usual_colours in zip(qualities.items(), most_alike(colours, TINTED).tolist(), strict=True):
        sight = sights.get(row)
        alike = len(shapes) if sight is None else int((np.abs(shapes - sight.shape) <= SHAPE).sum())
        marked[row] = replace(
            quality,
            usual_way=sight is None or 2 * ways[sight.mirrored] >= len(sights),
            shape=sight.shape if sight else 0.0,
            usual_shape=2 * alike >= len(shapes),
            usual_colours=usual_colours,
        )
    return marked


def _sight(scan: Scan, row: int, place: Placement) -> Sight:
    facts, aspect = scan.items[row].facts, float(scan.aspects[row])
    area = facts.width * facts.height * float(scan.inside[row])
    left, right = sorted((place.left, place.left + place.across))
    width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    return Sight(left, place.top, right, place.top + place.down, width, height, place.across < 0)


def _shown(pictures: Pictures, best: int, sights: Mapping[int, Sight], qualities: Mapping[int, Quality]) -> int | None:
    """Pixels that the best copy truly shows, if it was made of one of the others, or blurred."""
    rivals = _rivals(best, sights, qualities)
    return min(
        (shown for other in rivals if (shown := _shown_beside(pictures, (best, other), sights, qualities)) is not None),
        default=None,
    )


def _shown_beside(
    pictures: Pictures, rows: tuple[int, int], sights: Mapping[int, Sight], qualities: Mapping[int, Quality]
) -> int | None:
    """The same, if it was made of this other one."""
    mine, other = (sights[row] for row in rows)
    factors = [a / b for a, b in zip(mine.density, other.density, strict=True)]
    cuts = _laid_over(pictures, rows, sights) if max(factors) * MORE >= 1 else None
    if cuts is None:
        return None
    (one, two), places = cuts
    if max(factors) <= MORE:
        clean = qualities[rows[1]].smooth or not qualities[rows[0]].smooth  # blocks of compression are no detail
        blurred = clean and min(factors) * MORE >= 1 and is_blurred(one, two, places)
        return int(mine.width * mine.height) // 2 if blurred else None
    stretched = qualities[rows[1]].usual_shape and not qualities[rows[0]].usual_shape
    shows = compare_detail(one, two, places, factors)
    if shows == "less" or (shows == "as much" and stretched):
        return int(mine.width / max(1.0, factors[0]) * (mine.height / max(1.0, factors[1])))
    return None


def _rivals(best: int, sights: Mapping[int, Sight], qualities: Mapping[int, Quality]) -> Iterator[int]:
    """Other copies that may show more, those with the most pixels first: two of its own size, and one of each other."""
    plain = [row for row in sights if row != best and qualities[row].single and qualities[row].uncovered]
    sizes: Counter[tuple[int, int]] = Counter()
    for row in sorted(plain, key=lambda row: qualities[row].rank, reverse=True):
        size = qualities[row].width, qualities[row].height
        sizes[size] += 1
        if sizes[size] <= 1 + (size == (qualities[best].width, qualities[best].height)):
            yield row
        if len(sizes) == COMPARED:
            return


def _laid_over(
    pictures: Pictures, rows: tuple[int, int], sights: Mapping[int, Sight]
) -> tuple[tuple[Image.Image, Image.Image], tuple[Edges, Edges]] | None:
    """Two grey copies the same way up, and where in each lies what both show; None where that is too little."""
    one, two = (
        ImageOps.mirror(picture) if picture is not None and sights[row].mirrored else picture
        for row, picture in ((row, pictures(row)) for row in rows)
    )
    if one is None or two is None:
        return None
    places = _common((one, two), (sights[rows[0]], sights[rows[1]]))
    if min(side for place in places for side in (place[2] - place[0], place[3] - place[1])) < SMALLEST:
        return None
    return (one, two), places


def _common(copies: tuple[Image.Image, Image.Image], sights: tuple[Sight, Sight]) -> tuple[Edges, Edges]:
    """What both show, in pixels of each; a rim that one of them hardly lacks is a rounding of where they lie."""
    one, two = sights
    left, top = max(one.left, two.left), max(one.top, two.top)
    both = left, top, min(one.right, two.right), min(one.bottom, two.bottom)
    places = [_in_pixels(both, sight, copy.size) for sight, copy in zip(sights, copies, strict=True)]
    ends = [(0.0, 0.0, float(copy.width), float(copy.height)) for copy in copies]
    whole = [
        all(abs(place[edge] - end[edge]) < RIM for place, end in zip(places, ends, strict=True)) for edge in range(4)
    ]
    return _snapped(places[0], ends[0], whole), _snapped(places[1], ends[1], whole)


def _snapped(place: Edges, end: Edges, whole: list[bool]) -> Edges:
    left, top, right, bottom = (b if is_end else a for a, b, is_end in zip(place, end, whole, strict=True))
    return left, top, right, bottom


def _in_pixels(both: Edges, sight: Sight, size: tuple[int, int]) -> Edges:
    across, down = size[0] / (sight.right - sight.left), size[1] / (sight.bottom - sight.top)
    left, right = ((x - sight.left) * across for x in (both[0], both[2]))
    top, bottom = ((y - sight.top) * down for y in (both[1], both[3]))
    return left, top, right, bottom


def _grey(scan: Scan, row: int) -> Image.Image | None:
    """What lies inside the frame of a copy, grey."""
    try:
        picture = load_rgb(scan.items[row].path)
    except BadImage:
        return None
    if float(scan.inside[row]) <= UNFRAMED:
        picture = picture.crop(inside_frame(picture))
    return picture.convert("L")
