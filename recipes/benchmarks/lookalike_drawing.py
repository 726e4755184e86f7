"""What the families of look-alikes are drawn with: a fine canvas, colours, lines of words, a made-up photograph."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 384
FINE = 2  # drawn this many times larger, then averaged
WORDS = "model river paper light window garden copper signal market thread winter station method result sample"
Pen = ImageDraw.ImageDraw
Colour = tuple[int, int, int]


def canvas(colour: Colour) -> tuple[Image.Image, Pen]:
    image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), colour)
    return image, ImageDraw.Draw(image)


def averaged(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def any_colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    red, green, blue = (int(v) for v in rng.integers(low, high, 3))
    return red, green, blue


def around(share_x: float, share_y: float, r: float) -> tuple[float, float, float, float]:
    s = SIDE * FINE
    return (share_x - r) * s, (share_y - r) * s, (share_x + r) * s, (share_y + r) * s


def photograph(rng: np.random.Generator, side: int = SIDE) -> Image.Image:
    """Detail at every scale, as a photograph has it."""
    waves = np.zeros((side, side, 3), np.float32)
    for cells in (3, 6, 12, 24, 48, 96):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32) - 128
        waves += layer * rng.uniform(0.3, 0.9) * (3 / cells) ** 0.5
    return Image.fromarray(np.clip(128 + waves, 0, 255).astype(np.uint8))


def write_lines(
    pen: Pen, rng: np.random.Generator, box: tuple[float, float, float, float], size: float, ink: Colour
) -> None:
    """Lines of words that fill a box, given as shares."""
    s, font, words = SIDE * FINE, ImageFont.load_default(SIDE * FINE * size), WORDS.split()
    y = box[1]
    while y + size < box[3]:
        text = " ".join(rng.choice(words, 12))
        fitting = int(len(text) * min(1.0, (box[2] - box[0]) * s / pen.textlength(text, font)))
        pen.text((box[0] * s, y * s), text[:fitting], ink, font)
        y += 1.5 * size
