"""The one decoder: a picture file as the pixels that are trained on, judged, curated and shown.

Sizes are checked before pixels are decoded, no format starts another program, and every failure has a name.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from .exif import ORIENTATION, exif_trouble
from .text import one_line

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 100_000_000  # about 300 MB decoded; a larger file is a scan or a decompression bomb
PLUGINS = {  # module that teaches Pillow a format: the format, its suffixes, and what installs it
    "pillow_heif": ("HEIF", (".heic", ".heif", ".hif"), "pillow-heif"),
    "pillow_jxl": ("JXL", (".jxl",), "pillow-jxl-plugin"),
}
INSTALLED = tuple(name for name in PLUGINS if find_spec(name))
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
).union(*(PLUGINS[name][1] for name in INSTALLED))
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", *(PLUGINS[name][0] for name in INSTALLED))
FILMS = frozenset({".mp4", ".mov", ".webm", ".crdownload", ".part"})  # of which nobody expects a picture
CONVERT = "save it as PNG, JPEG or WebP"
UNREAD = dict.fromkeys(  # pictures and films of other types, and what to do about them
    (".jp2", ".tga", ".ppm", ".pgm", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".eps", ".ico", ".exr",
     ".hdr", ".jpeg_large", ".jpg_large", *sorted(FILMS)), CONVERT
) | {
    suffix: f"pip install {package}, or {CONVERT}"
    for name, (_, suffixes, package) in PLUGINS.items() if name not in INSTALLED for suffix in suffixes
}  # fmt: skip
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
PROFILED = ("RGB", "RGBA", "CMYK", "L", "LAB")
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
WHITES = (255, 65535, 2**31 - 1)  # what white can be in a picture of more than 8 bits; 1 as well where it is float


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
        profile: name of its colour profile where that is not sRGB; its colours are converted.
        profile_fits: that profile is one for such pixels; otherwise their colours are taken as they are.
        exif: what is wrong with its EXIF block, which is ignored as far as it is wrong; "" where nothing is.
    """

    width: int
    height: int
    mode: str
    format: str
    bytes: int
    rotated: bool = False
    alpha: bool = False
    animated: bool = False
    profile: str = ""
    profile_fits: bool = True
    exif: str = ""


@contextmanager
def open_image(source: Path | bytes) -> Iterator[Image.Image]:
    """Opens a picture file, or its bytes, without decoding it.

    Raises:
        BadImage: not a regular file, empty, not an image, damaged, or more than `MAX_PIXELS` pixels; also for what
            fails inside the `with` block, so that a decoder's error has the same name as an opener's.
    """
    try:
        _require_bytes(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _load_plugins()
            Image.init()  # without it a format whose plugin was not imported yet is a KeyError
            file = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                _require_sane_size(*image.size)
                yield image
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("bomb", f"more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise _named(error) from None


def load_rgb(source: Path | bytes) -> Image.Image:
    """A picture file, or its bytes, as `to_rgb` gives it.

    Raises:
        BadImage: see `open_image`.
    """
    with open_image(source) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit sRGB, whatever the mode: the pixels of training, and so those that everything else compares.

    A colour profile other than sRGB is applied; one that cannot be read says nothing.
    Transparent pixels become white. A picture of more than 8 bits is scaled, not clipped: 16-bit grey by 1/257, and
    32-bit integers and floats by the smallest of 1 (float only), 255, 65535 and 2^31 - 1 that holds their maximum.
    An EXIF block that cannot be read says nothing.

    Raises:
        BadImage: pixels that are not finite numbers.
    """
    image.load()  # a TIFF turns itself here
    turn = UPRIGHT.get(_orientation(image))
    image = _in_srgb(image)
    upright = image.transpose(turn) if turn is not None else image
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = _eight_bits(upright)
    elif upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    rgb = upright.convert("RGB")
    rgb.info.clear()  # or the result would ask to be turned once more
    return rgb


def to_tensor(image: Image.Image) -> Tensor:
    """A picture of any mode as pixels [3, H, W] in 0..1, float32: `to_rgb`, divided by 255."""
    import torch

    return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).float() / 255


def read_facts(path: Path, *, decode: bool = True) -> Facts:
    """Reads what an image file says about itself; with `decode`, also whether all its pixels are there.

    Raises:
        BadImage: see `open_image`.
    """
    with open_image(path) as image:
        turn = _orientation(image)
        swapped = turn in SIDEWAYS and image.format != "TIFF"  # a TIFF's size is upright from the start
        width, height = image.size[::-1] if swapped else image.size
        facts = Facts(
            width=width,
            height=height,
            mode=image.mode,
            format=image.format or "",
            bytes=path.stat().st_size,
            rotated=turn in UPRIGHT,
            alpha=image.has_transparency_data,
            animated=bool(getattr(image, "is_animated", False)),
            profile=profile_name(image),
            profile_fits=_to_srgb(image) is not None or not profile_name(image),
            exif=exif_trouble(image),
        )
        if decode:
            if image.format in ("JPEG", "MPO"):
                image.draft("L", (1, 1))  # reads every coefficient but builds an eighth of the pixels
            image.load()
    return facts


def _orientation(image: Image.Image) -> int:
    """How the picture is turned, 1 to 8; 1 where its EXIF block does not say, or is damaged."""
    with suppress(Exception):
        turn = image.getexif().get(ORIENTATION, 1)
        return turn if turn in UPRIGHT else 1
    return 1


def _load_plugins() -> None:
    for name in INSTALLED:
        module = import_module(name)
        if hasattr(module, "register_heif_opener"):
            module.register_heif_opener()


def profile_name(image: Image.Image) -> str:
    """The colour profile of a picture that is not in sRGB already; "" where there is none, or it cannot be read."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in PROFILED:
        return ""
    with suppress(Exception):
        from PIL import ImageCms

        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip()
        return "" if "srgb" in name.lower() else one_line(name, 60) or "unnamed"
    return ""


def _to_srgb(image: Image.Image) -> Any | None:
    """What turns the colours of a picture into sRGB; None where it has no other profile, or one for other pixels."""
    if not profile_name(image):
        return None
    with suppress(Exception):
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, mode)
    return None


def _in_srgb(image: Image.Image) -> Image.Image:
    transform = _to_srgb(image)
    if transform is None:
        return image
    from PIL import ImageCms

    return ImageCms.applyTransform(image, transform) or image


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise BadImage("unreadable", "holds pixels that are not finite numbers; save it anew")
    if image.mode == "F":
        white = _white(values, (1, *WHITES))
        return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))
    white = WHITES[1] if image.mode.startswith("I;16") else _white(values, WHITES)
    return Image.fromarray((values.clip(0) // (white // 255)).astype(np.uint8))


def _white(values: np.ndarray, whites: tuple[int, ...]) -> int:
    return next((white for white in whites if values.max() <= white), whites[-1])


def _require_bytes(source: Path | bytes) -> None:
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = os.stat(source)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not-a-file", "not a regular file (a pipe, a socket or a folder); only files are read")
    if size == 0:
        raise BadImage("empty", "0 bytes; download or copy it again")


def _require_sane_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage("bomb", f"{width} x {height} pixels given, at most {MAX_PIXELS:,} accepted; make it smaller")


def _named(error: Exception) -> BadImage:
    message = one_line(str(error), 160)
    if isinstance(error, UnidentifiedImageError):
        return BadImage("unreadable", f"not an image in a known format ({', '.join(FORMATS)})")
    if isinstance(error, EOFError) or "truncated" in message or "broken data stream" in message:
        return BadImage("truncated", f"the file ends too early ({message}); download or copy it again")
    return BadImage("unreadable", f"cannot be decoded ({type(error).__name__}: {message})")
