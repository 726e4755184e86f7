"""What an EXIF block says of a picture's orientation, and what is wrong with it."""

from __future__ import annotations

import warnings

from PIL import Image

from .text import one_line

ORIENTATION = 0x0112
MARK = b"Exif\0\0"  # begins a block; after it comes a TIFF file without a picture
TIFF_HEADERS = (b"II*\0", b"MM\0*")


def exif_trouble(image: Image.Image) -> str:
    """What is wrong with the EXIF block of an opened picture; "" where nothing is, or where it has none."""
    block = image.info.get("exif") or b""
    content = block
    while content.startswith(MARK):
        content = content[len(MARK) :]
    if content and not content.startswith(TIFF_HEADERS):
        return "it cannot be read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns of a block that is cut off or damaged in parts
            exif = Image.Exif()
            exif.load(block)
            turn = (exif if block else image.getexif()).get(ORIENTATION, 1)
    except Exception:  # decoders raise almost anything on damaged bytes
        return "it is damaged"
    return "" if turn in range(1, 9) else f"its orientation {one_line(str(turn), 20)} is none of 1 to 8"
