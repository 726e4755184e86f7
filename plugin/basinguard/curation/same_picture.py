"""One picture or two that look alike? Decided on the files themselves, at the resolution that both have.

Thumbnails propose, and they call a clock at one and a clock at two the same. Only what agrees here, in structure, in
detail and in colour, may be proposed to be dropped; captions that contradict each other are enough against it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from ..core.images import BadImage, open_image, to_rgb
from ..similarity.registration import WHOLE, Box, Overlay
from .alignment import refine, resampled_box
from .caption_conflict import contradict
from .colour_match import MOST, NONE, ColourRule, Pixels, explained, find_rule
from .pixel_agreement import LARGEST_OVERLAY, is_rich, pixel_difference
from .scan import Scan, inside_frame

GLANCE = 192  # pixels of the side of a first comparison
LONGEST = 1024  # pixels of the side on which pictures are compared; finer detail than that decides nothing
SMALLEST = 24  # pixels of the common picture; with less there is no detail to agree on
STILL = 0.012  # of a side, by which what stands on a plain ground may be off: a few pixels, as frames are found
NEXT = 0.02  # of a side, that a place found on thumbnails may be off
CELLS = 24  # on a side, for colours
BLOCK = 8  # pixels of a cell whose mean colour compression leaves as it is
REMEMBERED = 48  # pictures in memory, 3 MB each at most
DRAWING = "a drawing and its mirror image, or turned, may mean two things"
TURNS = {0: None, 90: Transpose.ROTATE_90, 180: Transpose.ROTATE_180, 270: Transpose.ROTATE_270}


@dataclass(frozen=True)
class PictureVerdict:
    """Whether two images show one picture, and what was seen.

    Attributes:
        same: they do; one may be proposed to be dropped.
        reason: what speaks against it, or how they differ, in words.
        overlay: 0 or 1, the one that has something laid over it; None for neither.
        box: where one lies in the other, to a fraction of a pixel; None where that was not looked at.
    """

    same: bool
    reason: str
    overlay: int | None = None
    box: Box | None = None


class Judge:
    """Compares images of a scan; remembers the last pictures that it opened."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._picture = lru_cache(REMEMBERED)(self._open)
        self._is_rich = lru_cache(None)(self._look)

    def __call__(self, first: int, second: int, overlay: Overlay, turned: int = 0) -> PictureVerdict:
        """Whether two images show one picture, given where thumbnails saw one in the other.

        Args:
            first, second: rows of the scan.
            overlay: of `first` and `second`, the latter turned.
            turned: degrees, counterclockwise, by which the second must be turned to stand like the first.
        """
        items = self._scan.items
        if self._scan.sha256[first] == self._scan.sha256[second]:
            return PictureVerdict(True, "the same bytes")
        if contradict(items[first].captions, items[second].captions):
            return PictureVerdict(False, "their captions say different things")
        moved = turned or (overlay.mirrored and overlay.share == 1)
        if moved and not (self._is_rich(first) and self._is_rich(second)):  # before they are laid over each other
            return PictureVerdict(False, DRAWING)
        opened, other = self._picture(first), self._picture(second)
        if opened is None or other is None:
            return PictureVerdict(False, "one of them cannot be read again")
        (one, place), (two, other_place) = opened, other
        if not turned and _moved(place, other_place, mirrored=overlay.mirrored):
            return PictureVerdict(False, "what they show stands at another place on a plain ground")
        if not turned and _lacks(place if overlay.swapped else other_place, overlay):
            return PictureVerdict(False, "one has more on a plain ground that the other shows empty")
        return same_picture(one, _turned(two, turned), overlay, turned=bool(turned))

    def _look(self, row: int) -> bool:
        """Whether a picture has detail nearly everywhere; one that cannot be read is not said to lack it."""
        opened = self._picture(row)
        if opened is None:
            return True
        small = opened[0].copy()
        small.thumbnail((GLANCE, GLANCE), Image.Resampling.BICUBIC, reducing_gap=2.0)
        pixels = np.asarray(small, np.float32)
        return is_rich(pixels, pixels)

    def _open(self, row: int) -> tuple[Image.Image, Box] | None:
        """What lies inside the frame of a picture, and where in the file that is, as shares of the sides."""
        try:
            with open_image(self._scan.items[row].path) as image:
                image.draft("RGB", (LONGEST, LONGEST))
                upright = to_rgb(image)
        except BadImage:
            return None
        left, top, right, bottom = inside_frame(upright)
        cut = upright.crop((left, top, right, bottom))
        cut.thumbnail((LONGEST, LONGEST), Image.Resampling.BICUBIC, reducing_gap=2.0)
        width, height = upright.size
        return cut, (left / width, top / height, right / width, bottom / height)


def _moved(one: Box, two: Box, *, mirrored: bool) -> bool:
    """Whether what two files show is as large and stands elsewhere, as a figure in motion and no frame does."""
    if mirrored:
        two = _flipped(two)
    sizes = [(place[2] - place[0], place[3] - place[1]) for place in (one, two)]
    as_large = max(abs(a - b) for a, b in zip(*sizes, strict=True)) <= STILL
    return as_large and max(abs(a - b) for a, b in zip(one, two, strict=True)) > STILL


def _lacks(part: Box, overlay: Overlay) -> bool:
    """Whether the smaller of two is no crop: beyond its content the larger has more, and its own ground goes as far.

    Args:
        part: where the content of the smaller lies in its file.
        overlay: where that lies in the content of the larger.
    """
    left, top, right, bottom = _flipped(part) if overlay.mirrored else part
    width, height = (
        (b - a) / (d - c) for a, b, c, d in ((left, right, *overlay.box[::2]), (top, bottom, *overlay.box[1::2]))
    )
    beyond = (
        (overlay.box[0] * width, left),
        (overlay.box[1] * height, top),
        ((1 - overlay.box[2]) * width, 1 - right),
        ((1 - overlay.box[3]) * height, 1 - bottom),
    )
    return any(ground > NEXT and NEXT < more <= ground + NEXT for more, ground in beyond)


def _flipped(box: Box) -> Box:
    return 1 - box[2], box[1], 1 - box[0], box[3]


def same_picture(one: Image.Image, two: Image.Image, overlay: Overlay, *, turned: bool = False) -> PictureVerdict:
    """Whether two pictures are one, given where thumbnails saw one in the other; see `Judge`."""
    whole, part = (two, one) if overlay.swapped else (one, two)
    if overlay.mirrored:
        part = part.transpose(Transpose.FLIP_LEFT_RIGHT)
    moved = overlay.mirrored or turned
    box = refine(whole, part, overlay.box)
    size = (
        min(part.width, round((box[2] - box[0]) * whole.width)),
        min(part.height, round((box[3] - box[1]) * whole.height)),
    )
    if min(size) < SMALLEST:
        return PictureVerdict(False, "one of them is too small to tell")
    verdict = PictureVerdict(False, "")
    for longest in (GLANCE, LONGEST):  # most pairs that differ do so at a glance
        factor = min(1.0, longest / max(size))
        pixels = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        last = longest == LONGEST or pixels == size
        verdict = _compared(
            resampled_box(whole, box, pixels), resampled_box(part, WHOLE, pixels), overlay, moved=moved, glance=not last
        )
        if last or not verdict.same:
            break
    return replace(verdict, box=box)


def _compared(under: Image.Image, over: Image.Image, overlay: Overlay, *, moved: bool, glance: bool) -> PictureVerdict:
    matched = _matched(under, over)
    if matched is None:
        return PictureVerdict(False, "their colours differ, and no change of light or tint explains it")
    difference = pixel_difference(*matched)
    rich = is_rich(*matched) if moved or (glance and difference.share) else False
    undecided = glance and rich and difference.share <= LARGEST_OVERLAY  # too coarse a look for a border
    if difference.share and difference.overlay is None and not undecided:
        return PictureVerdict(False, f"they differ in {max(0.001, difference.share):.1%} of the picture")
    if moved and not rich:
        return PictureVerdict(False, DRAWING)
    if difference.overlay is None:
        return PictureVerdict(True, "they agree everywhere")
    covered = difference.overlay if not overlay.swapped else 1 - difference.overlay
    return PictureVerdict(True, f"one has something laid over {difference.share:.0%} of it", covered)


def _matched(under: Image.Image, over: Image.Image) -> tuple[Pixels, Pixels] | None:
    """Both pictures [H, W, 3] with the colours of one of them, or None where no rule turns one into the other."""
    one, two = (np.asarray(each, np.float32) for each in (under, over))
    blocks = [_cells(each, *(min(CELLS, max(1, side // BLOCK)) for side in each.size)) for each in (under, over)]
    if explained(NONE, *blocks) >= MOST:
        return one, two
    small = [_cells(each, CELLS, CELLS) for each in (under, over)]
    ways = [(find_rule(*cells), cells) for cells in (small, small[::-1])]
    shares = [explained(rule, *cells) if rule is not None else 0.0 for rule, cells in ways]  # one way may have clipped
    forth, back = (rule for rule, _ in ways)
    if forth is not None and shares[0] >= shares[1]:
        return _applied(forth, one), two
    return None if back is None else (one, _applied(back, two))


def _cells(picture: Image.Image, across: int, down: int) -> Pixels:
    """Mean colours of the cells of a grid, [N, 3]."""
    return np.asarray(picture.resize((across, down), Image.Resampling.BOX), np.float32).reshape(-1, 3)


def _applied(rule: ColourRule, pixels: Pixels) -> Pixels:
    return pixels if rule == NONE else rule(pixels)


def _turned(picture: Image.Image, degrees: int) -> Image.Image:
    turn = TURNS[degrees]
    return picture if turn is None else picture.transpose(turn)
