"""Opening images that strangers made: sizes are checked before pixels are decoded, and every failure has a name."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # about 300 MB decoded; a larger file is a scan or a decompression bomb
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # nothing that starts another program
ORIENTATION = 0x0112


class BadImage(ValueError):
    """An image that cannot be used. `code` is one of unreadable, truncated, empty, bomb, not-a-file."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (self.code, str(self))


@dataclass(frozen=True)
class Facts:
    """What a file says about itself.

    Attributes:
        width, height: pixels, upright (after the EXIF rotation).
        mode: PIL's pixel mode, for example "RGB", "RGBA", "P", "CMYK".
        format: PIL's name of the file format.
        bytes: file size.
        rotated: the EXIF header asks for a rotation or a mirror.
        alpha: some pixel may be transparent.
        animated: more than one frame; only the first is used.
    """

    width: int
    height: int
    mode: str
    format: str
    bytes: int
    rotated: bool = False
    alpha: bool = False
    animated: bool = False


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens an image without decoding it.

    Raises:
        BadImage: not a regular file, empty, not an image, damaged, or more than `MAX_PIXELS` pixels; also for what
            fails inside the `with` block, so that a decoder's error has the same name as an opener's.
    """
    try:
        _require_bytes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()  # without it a format whose plugin was not imported yet is a KeyError
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                _require_sane_size(*image.size)
                yield image
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("bomb", f"more than {MAX_PIXELS:,} pixels ({error}); make it smaller") from None
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise _named(error) from None


def read_facts(path: Path, *, decode: bool = True) -> Facts:
    """Reads what an image file says about itself; with `decode`, also whether all its pixels are there.

    Raises:
        BadImage: see `open_image`.
    """
    with open_image(path) as image:
        turn = image.getexif().get(ORIENTATION, 1)
        width, height = image.size if turn not in (5, 6, 7, 8) else image.size[::-1]
        facts = Facts(
            width=width,
            height=height,
            mode=image.mode,
            format=image.format or "",
            bytes=path.stat().st_size,
            rotated=turn not in (0, 1),
            alpha="A" in image.getbands() or "transparency" in image.info,
            animated=bool(getattr(image, "is_animated", False)),
        )
        if decode:
            if image.format in ("JPEG", "MPO"):
                image.draft("L", (1, 1))  # reads every coefficient but builds an eighth of the pixels
            image.load()
    return facts


def _require_bytes(path: Path) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not-a-file", "not a regular file (a pipe, a socket or a folder); only files are read")
    if status.st_size == 0:
        raise BadImage("empty", "0 bytes; download or copy it again")


def _require_sane_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage("bomb", f"{width} x {height} pixels given, at most {MAX_PIXELS:,} accepted; make it smaller")


def _named(error: Exception) -> BadImage:
    said = " ".join(str(error).split())[:160]
    if isinstance(error, UnidentifiedImageError):
        return BadImage("unreadable", f"not an image in a known format ({', '.join(FORMATS)})")
    if isinstance(error, EOFError) or "truncated" in said or "broken data stream" in said:
        return BadImage("truncated", f"the file ends too early ({said}); download or copy it again")
    return BadImage("unreadable", f"cannot be decoded ({type(error).__name__}: {said})")
