"""Which copy of a picture is the best one, and why: nothing laid over it, no frame, the most true detail."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from ..core.images import BadImage, load_rgb
from .scan import Scan

UNFRAMED = 0.98  # share of a file inside its frame from which there is none
MIDDLE = 512  # pixels of the middle in which detail is measured, as the file has them
CELL = 8  # pixels of the blocks that JPEG compresses
SHAPE = 0.04  # by which the proportions of two copies that were not stretched may differ
TINTED = 4.0  # levels by which the mean colours of copies that were not tinted may differ
LOSSLESS = ("PNG", "BMP", "TIFF")
BLOCKY = 1.15  # times the usual step from pixel to pixel that those between two blocks may be


@dataclass(frozen=True)
class Quality:
    """What makes a copy better than another.

    Attributes:
        uncovered: nothing is laid over it.
        single: it is no collage.
        unframed: it has no plain frame.
        width, height: pixels.
        shown: pixels of the copy that it was made of, see `true_detail`; None where it was not.
        usual_way: it is not flipped against more than half of the copies.
        shape: its proportions against those of another copy, as a logarithm.
        usual_shape: it is not stretched against more than half of them.
        usual_colours: its mean colour is that of as many other copies as any one's is.
        lossless: its file format loses nothing.
        smooth: it shows no blocks of a strong compression.
        captioned: it has a caption.
        bytes: size of the file.
        words: of its caption.
        first: minus its place in the order of names, so that the first wins a tie.
    """

    uncovered: bool
    single: bool
    unframed: bool
    width: int
    height: int
    lossless: bool
    smooth: bool
    captioned: bool
    bytes: int
    words: int
    first: int
    shown: int | None = None
    usual_way: bool = True
    shape: float = 0.0
    usual_shape: bool = True
    usual_colours: bool = True

    @property
    def detail(self) -> int:
        """Pixels that show something."""
        pixels = self.width * self.height
        return pixels if self.shown is None else min(pixels, self.shown)

    @property
    def merit(self) -> tuple[int, ...]:
        """What makes it better, the most important first; larger is better."""
        laid_out = self.single, self.uncovered, self.unframed
        usual = self.usual_way, self.usual_shape, self.usual_colours
        return *laid_out, self.detail, self.shown is None, *usual, self.lossless, self.smooth

    @property
    def rank(self) -> tuple[int, ...]:
        """The same, with what decides between equals."""
        ties = self.captioned, self.width * self.height, self.bytes, self.words, self.first
        return *self.merit, *ties


def picture_qualities(
    scan: Scan, rows: Sequence[int], covered: Collection[int], collages: Collection[int]
) -> dict[int, Quality]:
    """The quality of some images of a scan; `covered` are those with something laid over them."""
    return {row: _quality(scan, row, uncovered=row not in covered, single=row not in collages) for row in rows}


def _quality(scan: Scan, row: int, *, uncovered: bool, single: bool) -> Quality:
    item = scan.items[row]
    return Quality(
        uncovered=uncovered,
        single=single,
        unframed=float(scan.inside[row]) > UNFRAMED,
        width=item.facts.width,
        height=item.facts.height,
        lossless=item.facts.format in LOSSLESS and item.facts.mode != "P",
        smooth=_is_smooth(scan, row),
        captioned=bool(item.caption),
        bytes=item.facts.bytes,
        words=len(item.caption.split()),
        first=-row,
    )


def _is_smooth(scan: Scan, row: int) -> bool:
    """Whether no blocks show; a file that cannot be read again counts as one where they do."""
    try:
        picture = load_rgb(scan.items[row].path)
    except BadImage:
        return False
    return not is_blocky(picture)


def most_alike(values: NDArray[np.floating], tolerance: float) -> NDArray[np.bool_]:
    """Which of N values [N, D] are near one that is near as many of the others as any is, in each of their parts.

    Not which are near the median: half of the copies of a picture may be crops, each of which shifts it.

    Example:
        >>> most_alike(np.array([[0.0], [1.5], [3.0], [9.0]]), 2.0).tolist()
        [True, True, True, False]
    """
    near = cKDTree(values).query_ball_point(values, tolerance, p=np.inf, return_length=True)
    distances, _ = cKDTree(values[near == near.max()]).query(values, p=np.inf)
    return np.asarray(distances <= tolerance)


def is_blocky(picture: Image.Image) -> bool:
    """Whether the blocks of a strong JPEG compression show along one side, whatever the file is now."""
    grey = np.asarray(_middle(picture), np.float32)
    return any(_block_step(np.abs(np.diff(grey, axis=axis)).mean(1 - axis)) > BLOCKY for axis in (0, 1))


def _block_step(steps: NDArray[np.float32]) -> float:
    """The step between blocks, wherever they begin, over the usual one; 1 for pictures that are too small to tell."""
    if len(steps) < 4 * CELL:
        return 1.0
    phases = np.median(steps[: len(steps) // CELL * CELL].reshape(-1, CELL), 0)
    return float(phases.max() / max(np.median(phases), 1e-3))


def _middle(picture: Image.Image) -> Image.Image:
    left, top = (max(0, (length - MIDDLE) // 2) for length in picture.size)
    right, bottom = min(left + MIDDLE, picture.width), min(top + MIDDLE, picture.height)
    return picture.crop((left, top, right, bottom)).convert("L")


def why_best(ranked: Sequence[Quality]) -> str:
    """Why the first of some copies stays, in words that follow "it has"."""
    best, *rest = ranked
    size = f"{best.width} x {best.height}"
    reasons = []
    if best.single and not all(other.single for other in rest):
        reasons.append("one picture and no collage")
    rest = [other for other in rest if other.single == best.single] or rest
    if best.uncovered and not all(other.uncovered for other in rest):
        reasons.append("nothing laid over it")
    rest = [other for other in rest if other.uncovered == best.uncovered] or rest
    if best.unframed and not all(other.unframed for other in rest):
        reasons.append("no frame")
    rest = [other for other in rest if other.unframed == best.unframed] or rest
    if all(best.detail > other.detail for other in rest):
        more = all(best.width * best.height > other.width * other.height for other in rest)
        what = f"the most pixels ({size})" if more else f"the most true detail ({size}, not enlarged or blurred)"
        stretched = any(abs(best.shape - other.shape) > SHAPE for other in rest)
        reasons.append(what + ("; their proportions differ, look which are right" if stretched and more else ""))
    elif best.shown is None and all(best.detail > other.detail or other.shown is not None for other in rest):
        reasons.append(f"the most true detail ({size}, not enlarged or stretched)")
    elif best.usual_shape and not all(other.usual_shape for other in rest):
        reasons.append(f"as much detail as any ({size}) and the proportions of most")
    elif best.lossless and not all(other.lossless for other in rest):
        reasons.append(f"as much detail as any ({size}) and a file format without loss")
    elif best.smooth and not all(other.smooth for other in rest):
        reasons.append(f"as much detail as any ({size}) and no blocks of compression")
    elif best.captioned and not all(other.captioned for other in rest):
        reasons.append(f"as much detail as any ({size}) and a caption")
    elif all(best.bytes > other.bytes for other in rest):
        reasons.append(f"as many pixels as any ({size}) and the largest file, so the least compressed")
    else:
        reasons.append(f"as much detail as any ({size}) and the name that sorts first")
    return " and ".join(reasons)
