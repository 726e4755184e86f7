"""Every image read once: a content hash and a small thumbnail, from several processes, remembered between runs.

Everything later (hashes, embeddings, registration, the report's order) works on thumbnails, so memory is 12 kB an
image whatever the photographs weigh.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.files import file_sha256
from ..core.images import BadImage, open_image, to_rgb
from ..core.progress import say
from ..core.text import printable
from .folder import Item, Problem
from .thumbnail_cache import SIDE, Store, pixels
from .workers import worker_pool

EVEN = 14  # levels that the pixels of a plain frame may differ by, JPEG noise included
BLEED = 16  # pixels of a frame that may take on what lies beside them: a block of colour in a JPEG file
IN_PROCESS_BELOW = 400  # starting processes costs about as much as reading this many images


@dataclass(frozen=True)
class Scan:
    """What was read of the images that can be decoded, in the order of `items`.

    Attributes:
        items: images that decoded, [N].
        sha256: content hash of each file, N hexadecimal strings.
        thumbs: upright RGB thumbnails without a plain frame, squashed to a square, uint8 [N, 64, 64, 3].
        aspects: width over height of what the thumbnail shows, [N].
        inside: share of the file's area that lies inside its plain frame, 1 without one, [N].
        problems: images that did not decode.
    """

    items: tuple[Item, ...]
    sha256: tuple[str, ...]
    thumbs: NDArray[np.uint8]
    aspects: NDArray[np.float32]
    inside: NDArray[np.float32]
    problems: tuple[Problem, ...]


def scan_images(
    items: Sequence[Item],
    *,
    cache: Path | None = None,
    workers: int | None = None,
) -> Scan:
    """Hashes and shrinks every image; one that cannot be decoded becomes a problem and the rest goes on.

    Args:
        items: images, as `read_folder` returns them.
        cache: a SQLite file that remembers thumbnails by content hash; an interrupted scan goes on from there.
        workers: processes; None takes all cores, or none besides this one for a small set.
    """
    paths = [os.fspath(item.path) for item in items]
    thumbs = np.zeros((len(items), SIDE, SIDE, 3), np.uint8)
    shapes = np.ones((len(items), 2), np.float32)
    with worker_pool(_worker_count(len(items), workers)) as mapped, closing(Store(cache)) as store:
        digests = list(mapped(_hash_file, paths))
        places: dict[str, list[int]] = {}
        for row, digest in enumerate(digests):
            if isinstance(digest, str):
                places.setdefault(digest, []).append(row)
        fresh = [digest for digest in places if not store.load(digest, thumbs, shapes, places[digest])]
        made = mapped(_shrink_file, [paths[places[digest][0]] for digest in fresh])
        bad = {row: digest for row, digest in enumerate(digests) if isinstance(digest, BadImage)}
        for done, (digest, outcome) in enumerate(zip(fresh, made, strict=True), start=1):
            if isinstance(outcome, BadImage):
                bad.update(dict.fromkeys(places[digest], outcome))
            else:
                thumbs[places[digest]], shapes[places[digest]] = pixels(outcome[0]), outcome[1:]
                store.save(digest, *outcome)
            if done % 256 == 0 or done == len(fresh):
                say(f"read {done} of {len(fresh)} images")
    good = [row for row in range(len(items)) if row not in bad]
    for place, row in enumerate(good):  # in place: a second array of thumbnails would double the memory
        thumbs[place] = thumbs[row]
    problems = tuple(
        Problem(error.code, printable(items[row].file_name), str(error), True) for row, error in sorted(bad.items())
    )
    hashes = tuple(str(digests[row]) for row in good)
    return Scan(
        tuple(items[row] for row in good), hashes, thumbs[: len(good)], shapes[good, 0], shapes[good, 1], problems
    )


def cache_thumbnails(paths: Sequence[str], cache: Path) -> None:
    """Puts the thumbnails of some files into a cache, so that a later `scan_images` need not decode them.

    For a machine that sees a share of a large set (`training.distributed_scan`); a file that cannot be read is left to
    the scan itself, which says why.
    """
    with closing(Store(cache)) as store:
        for path in paths:
            digest = _hash_file(path)
            if isinstance(digest, str) and not store.knows(digest):
                outcome = _shrink_file(path)
                if not isinstance(outcome, BadImage):
                    store.save(digest, *outcome)


def shrink(path: Path) -> tuple[NDArray[np.uint8], float, float]:
    """An upright RGB thumbnail, a plain frame cut off.

    Returns:
        The thumbnail, uint8 [64, 64, 3], width over height of what it shows, and the share of the file that this is.

    Raises:
        BadImage: see `images.open_image`.
    """
    with open_image(path) as image:
        # JPEG only: decodes at the smallest scale that is still twice as large
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
        small, _ = _reduced(to_rgb(image))
        left, top, right, bottom = _inside_frame(np.asarray(small))
        thumb = small.resize((SIDE, SIDE), Image.Resampling.BOX, box=(left, top, right, bottom))
        width, height = right - left, bottom - top
        return np.asarray(thumb), width / height, width * height / (small.width * small.height)


def inside_frame(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, in pixels, of what lies inside a plain frame of an RGB picture."""
    small, factor = _reduced(picture)
    left, top, right, bottom = (edge * factor for edge in _inside_frame(np.asarray(small)))
    right, bottom = min(right, picture.width), min(bottom, picture.height)
    pixels, reach = np.asarray(picture), 2 * factor + BLEED
    rows, columns = pixels[:, left:right], pixels[top:bottom].swapaxes(0, 1)
    return (
        left + _rest_of_margin(columns, left, reach),
        top + _rest_of_margin(rows, top, reach),
        right - _rest_of_margin(columns[::-1], picture.width - right, reach),
        bottom - _rest_of_margin(rows[::-1], picture.height - bottom, reach),
    )


def _rest_of_margin(lines: NDArray[np.uint8], margin: int, reach: int) -> int:
    """How many lines beyond a margin still belong to it: compression lets its last ones take on what lies beside."""
    if not margin or margin + 2 * reach > len(lines):
        return 0
    away = np.abs(lines[margin : margin + 2 * reach].astype(np.int16) - lines[0].astype(np.int16)).mean((1, 2))
    return int(np.argmax(away[:reach] >= away[reach:].mean() / 2))


def _reduced(picture: Image.Image) -> tuple[Image.Image, int]:
    factor = max(1, min(picture.size) // (4 * SIDE))
    return (picture.reduce(factor) if factor > 1 else picture), factor


def _inside_frame(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what lies inside a plain frame: opposite margins of one even colour."""
    top, bottom = _margins(pixels)
    left, right = _margins(pixels[top : len(pixels) - bottom].swapaxes(0, 1))
    return left, top, pixels.shape[1] - right, len(pixels) - bottom


def _margins(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    first, last = pixels[0].astype(np.int16), pixels[-1].astype(np.int16)
    if (first.max(0) - first.min(0)).max() > 2 * EVEN:  # so some pixel is too far from the median: most images end here
        return 0, 0
    colour = np.median(first, axis=0)
    if max(np.abs(first - colour).max(), np.abs(last - colour).max()) > EVEN:
        return 0, 0
    even = (np.abs(pixels.astype(np.int16) - colour.astype(np.int16)) <= EVEN).all((1, 2))
    if even.all():
        return 0, 0
    return int(np.argmin(even)), int(np.argmin(even[::-1]))


def _hash_file(path: str) -> str | BadImage:
    try:
        return file_sha256(path)
    except OSError as error:
        return BadImage("unreadable", f"cannot be read ({error.strerror})")


def _shrink_file(path: str) -> tuple[bytes, float, float] | BadImage:
    try:
        thumb, aspect, inside = shrink(Path(path))
        return thumb.tobytes(), aspect, inside
    except BadImage as error:
        return error


def _worker_count(images: int, workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1, or None for all cores")
    if workers is None:
        return (os.cpu_count() or 1) if images >= IN_PROCESS_BELOW else 1
    return workers
