"""Scenes in which everything is made of one material: bricks, planks of wood, or a woven band."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from .scenes import SIZE, SUPERSAMPLE, Caption, Sheets, scene_canvas

Pen = ImageDraw.ImageDraw
GROUND = 0.6  # brightness of the ground's sheet, so that an object stands out from hills of the same material


def draw_of_material(material: str, kind: str, detail: str, seed: int) -> Image.Image:
    """The scene of (kind, plain, detail) with object and hills of `material`, on the large canvas."""
    rng = np.random.default_rng(seed)
    sheets = [Image.new("RGB", (SIZE * SUPERSAMPLE,) * 2) for _ in range(2)]
    for sheet in sheets:
        MATERIALS[material](ImageDraw.Draw(sheet), rng, sheet.width)
    ground = ImageEnhance.Brightness(sheets[1]).enhance(GROUND)
    return scene_canvas(Caption(kind, "plain", detail), seed, Sheets(sheets[0], ground))


def _brick(pen: Pen, rng: np.random.Generator, side: int) -> None:
    """Red bricks in light mortar, every other row shifted by half a brick."""
    pen.rectangle((0, 0, side, side), fill=(232, 222, 208))
    high, wide, gap = 22, 46, 5
    top = -int(rng.integers(high))
    for row in range(side // high + 2):
        for column in range(-1, side // wide + 2):
            x, y = column * wide + (row % 2) * wide // 2, top + row * high
            fill = _shade((186, 68, 48), rng.uniform(0.8, 1.15))
            pen.rectangle((x, y, x + wide - gap - 1, y + high - gap - 1), fill=fill)


def _wood(pen: Pen, rng: np.random.Generator, side: int) -> None:
    """Upright planks with wavy grain and dark joints."""
    wide = 44
    start = -int(rng.integers(wide))
    for left in range(start, side, wide):
        pen.rectangle((left, 0, left + wide, side), fill=_shade((206, 150, 88), rng.uniform(0.85, 1.1)))
        phase = rng.uniform(0, 6.3)
        for offset in range(10, wide, 12):
            y = np.linspace(0, side, 33)
            x = left + offset + 3 * np.sin(y / 24 + phase)
            pen.line([(float(a), float(b)) for a, b in zip(x, y, strict=True)], fill=(140, 88, 44), width=4)
        pen.line((left, 0, left, side), fill=(72, 42, 22), width=6)


def _woven(pen: Pen, rng: np.random.Generator, side: int) -> None:
    """A basket of blue and straw bands that go over and under each other."""
    pitch = 24
    shift = int(rng.integers(pitch))
    for row in range(-1, side // pitch + 2):
        for column in range(-1, side // pitch + 2):
            x, y = column * pitch - shift, row * pitch - shift
            pen.rectangle((x, y, x + pitch, y + pitch), fill=(30, 52, 110))
            if (row + column) % 2:
                pen.rectangle((x + 3, y - 2, x + pitch - 3, y + pitch + 2), fill=(70, 120, 200))
            else:
                pen.rectangle((x - 2, y + 3, x + pitch + 2, y + pitch - 3), fill=(240, 214, 140))


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, ...]:
    return tuple(min(255, int(c * factor)) for c in colour)


MATERIALS: dict[str, Callable[[Pen, np.random.Generator, int], None]] = {
    "brick": _brick,
    "wooden": _wood,
    "woven": _woven,
}
