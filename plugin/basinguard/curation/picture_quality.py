"""Which copy of a picture is the best one, and why: nothing laid over it, no frame, the most true detail."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..core.images import BadImage, load_rgb
from .scan import Scan

UNFRAMED = 0.98  # share of a file inside its frame from which there is none
MIDDLE = 512  # pixels of the middle in which detail is measured, as the file has them
EMPTY = 0.12  # times the detail one octave lower, below which an octave holds nothing: enlarged, or blurred
OCTAVES = 3


@dataclass(frozen=True)
class Quality:
    """What makes a copy better than another.

    Attributes:
        uncovered: nothing is laid over it.
        unframed: it has no plain frame.
        width, height: pixels.
        octaves: halvings of the picture that lose nothing, 0 for one with detail up to the last pixel.
        captioned: it has a caption.
        bytes: size of the file.
        words: of its caption.
        first: minus its place in the order of names, so that the first wins a tie.
    """

    uncovered: bool
    unframed: bool
    width: int
    height: int
    octaves: int
    captioned: bool
    bytes: int
    words: int
    first: int

    @property
    def detail(self) -> int:
        """Pixels that hold something: those of the smallest picture that loses nothing."""
        return (self.width * self.height) >> (2 * self.octaves)

    @property
    def rank(self) -> tuple[int, ...]:
        """Larger is better."""
        pixels = self.width * self.height
        return self.uncovered, self.unframed, self.detail, self.captioned, pixels, self.bytes, self.words, self.first


def picture_qualities(scan: Scan, rows: Sequence[int], covered: Collection[int]) -> dict[int, Quality]:
    """The quality of some images of a scan; `covered` are those with something laid over them."""
    return {row: _quality(scan, row, row not in covered) for row in rows}


def _quality(scan: Scan, row: int, uncovered: bool) -> Quality:
    item = scan.items[row]
    return Quality(
        uncovered=uncovered,
        unframed=float(scan.inside[row]) > UNFRAMED,
        width=item.facts.width,
        height=item.facts.height,
        octaves=_octaves_of(scan, row),
        captioned=bool(item.caption),
        bytes=item.facts.bytes,
        words=len(item.caption.split()),
        first=-row,
    )


def _octaves_of(scan: Scan, row: int) -> int:
    try:
        return empty_octaves(load_rgb(scan.items[row].path))
    except BadImage:
        return OCTAVES


def empty_octaves(picture: Image.Image) -> int:
    """How often a picture could be halved without losing detail, 0 to 3, judged by its middle.

    A picture without detail at any scale counts as one that cannot be halved.
    """
    left, top = (max(0, (length - MIDDLE) // 2) for length in picture.size)
    middle = picture.convert("L").crop(
        (left, top, min(left + MIDDLE, picture.width), min(top + MIDDLE, picture.height))
    )
    level, halvings = np.asarray(middle, np.float32), 0
    bands = []
    for _ in range(OCTAVES + 1):
        blurred = gaussian_filter(level, 1.0)
        bands.append(float((level - blurred).std()))
        level = blurred[::2, ::2]
        if min(level.shape) < 16:
            break
    while halvings + 1 < len(bands) and bands[halvings] < EMPTY * bands[halvings + 1]:
        halvings += 1
    return halvings


def why_best(ranked: Sequence[Quality]) -> str:
    """Why the first of some copies stays, in words that follow "it has"."""
    best, *rest = ranked
    size = f"{best.width} x {best.height}"
    reasons = []
    if best.uncovered and not all(other.uncovered for other in rest):
        reasons.append("nothing laid over it")
    rest = [other for other in rest if other.uncovered == best.uncovered] or rest
    if best.unframed and not all(other.unframed for other in rest):
        reasons.append("no frame")
    rest = [other for other in rest if other.unframed == best.unframed] or rest
    if all(best.detail > other.detail for other in rest):
        more = all(best.width * best.height > other.width * other.height for other in rest)
        what = f"the most pixels ({size})" if more else f"the most true detail ({size}, not enlarged or blurred)"
        reasons.append(what)
    elif best.captioned and not all(other.captioned for other in rest):
        reasons.append(f"as much detail as any ({size}) and a caption")
    elif all(best.bytes > other.bytes for other in rest):
        reasons.append(f"as many pixels as any ({size}) and the largest file, so the least compressed")
    else:
        reasons.append(f"as good as any ({size}) and the first by name")
    return " and ".join(reasons)
