"""Captioned scenes drawn by a program: unlimited images, so a model trained on them generalizes.

What a caption names is *fine* (the contour of an object, its texture, a small detail) and what it leaves open is
*coarse* (where the object stands, its size and colours, horizon, hills, light). Fine-tuning on a few scenes therefore
memorizes what captions do not say, as it does with real photographs, and guidance that starts late can still follow
the caption.

Example:
    >>> scene = draw_scene(Caption("star", "striped", "with eyes"), seed=3)
    >>> scene.size
    (64, 64)
    >>> str(Caption("star", "striped", "with eyes"))
    'a striped star with eyes'
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SUPERSAMPLE = 4  # drawn four times larger and averaged down: smooth contours without a graphics library
TEXTURES = ("plain", "striped", "dotted", "checkered")
DETAILS = ("", "with eyes", "with a hat", "with a flag")

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Caption:
    """What a scene's caption says: one object, its texture, one small detail."""

    kind: str
    texture: str
    detail: str = ""

    def __str__(self) -> str:
        return f"a {self.texture} {self.kind} {self.detail}".strip()


def all_captions() -> list[Caption]:
    """Every caption of this world, in a fixed order: kinds x textures x details."""
    return [Caption(*words) for words in itertools.product(KINDS, TEXTURES, DETAILS)]


def draw_scene(caption: Caption, seed: int) -> Image.Image:
    """Draws one scene. Everything the caption leaves open comes from `seed`.

    Args:
        caption: what to draw.
        seed: fixes layout, colours and background; the same seed gives the same pixels.

    Returns:
        An RGB image of 64x64 pixels.
    """
    return reduced(scene_canvas(caption, seed))


def scene_canvas(caption: Caption, seed: int, sheets: Sheets | None = None) -> Image.Image:
    """The same scene four times larger, as it is before it is averaged down.

    Args:
        caption: what to draw.
        seed: fixes layout, colours and background.
        sheets: what the object and the hills are cut from, instead of the caption's texture and plain colours.
    """
    rng = np.random.default_rng(seed)
    side = SIZE * SUPERSAMPLE
    canvas, ground = background(rng, side)
    radius = rng.uniform(0.21, 0.29) * side
    centre = (rng.uniform(0.3, 0.7) * side, rng.uniform(0.36, 0.7) * side)
    mask = _object_mask(caption.kind, centre, radius, side)
    sheet = _textured(caption.texture, rng, centre, side)
    if sheets is not None:
        canvas = Image.composite(sheets.ground, canvas, ground)
        sheet = sheets.object
    canvas = Image.composite(sheet, canvas, mask)
    draw_detail(canvas, caption.detail, centre, radius)
    return canvas


@dataclass(frozen=True)
class Sheets:
    """Two full canvases: what the object is cut from, and what the hills are cut from."""

    object: Image.Image
    ground: Image.Image


def reduced(canvas: Image.Image) -> Image.Image:
    """The canvas averaged down to 64x64 pixels."""
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """A colour of 0..255 each; the hue wraps around at 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def background(rng: np.random.Generator, side: int) -> tuple[Image.Image, Image.Image]:
    """Sky that fades sideways, a sun, and one or two rows of hills; beside it, the mask of the hills."""
    hue = rng.uniform()
    left = np.array(rgb(hue, rng.uniform(0.15, 0.6), rng.uniform(0.75, 1.0)), dtype=np.float32)
    right = np.array(rgb(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.15, 0.6), rng.uniform(0.55, 1.0)), np.float32)
    fade = np.linspace(0, 1, side, dtype=np.float32)[None, :, None]
    sky = np.broadcast_to(left * (1 - fade) + right * fade, (side, side, 3)).astype(np.uint8)
    canvas = Image.fromarray(np.ascontiguousarray(sky))
    pen = ImageDraw.Draw(canvas)
    place = (rng.uniform(0.05, 0.95) * side, rng.uniform(0.05, 0.3) * side)
    size = rng.uniform(0.06, 0.14) * side
    disc(pen, place, size, rgb(rng.uniform(0.05, 0.17), rng.uniform(0.1, 0.7), 1.0))
    ground = rng.uniform()
    mask = Image.new("L", (side, side), 0)
    for layer in range(rng.integers(1, 3)):
        contour = _hills(pen, rng, side, base=rng.uniform(0.5, 0.75) + 0.14 * layer, hue=ground + 0.06 * layer)
        ImageDraw.Draw(mask).polygon(contour, fill=255)
    return canvas, mask


def _hills(pen: ImageDraw.ImageDraw, rng: np.random.Generator, side: int, base: float, hue: float) -> Points:
    x = np.linspace(0, 1, 65)
    waves, phase, slope = rng.uniform(0.5, 1.8), rng.uniform(0, 2 * math.pi), rng.uniform(-0.18, 0.18)
    y = base + 0.07 * np.sin(2 * math.pi * waves * x + phase) + slope * (x - 0.5)
    line = [(float(a) * side, float(b) * side) for a, b in zip(x, y, strict=True)]
    contour = [*line, (side, side), (0, side)]
    pen.polygon(contour, fill=rgb(hue, rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.8)))
    return contour


def _object_mask(kind: str, centre: tuple[float, float], radius: float, side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    KINDS[kind](ImageDraw.Draw(mask), centre, radius)
    return mask


def _textured(texture: str, rng: np.random.Generator, centre: tuple[float, float], side: int) -> Image.Image:
    """A full sheet of the object's texture, in a light and a dark tone of one hue."""
    hue, light = rng.uniform(), rng.uniform() < 0.5
    body = rgb(hue, 0.75, 0.95 if light else 0.55)
    mark = rgb(hue + 0.5, 0.35, 0.25 if light else 1.0)
    sheet = Image.new("RGB", (side, side), body)
    pen = ImageDraw.Draw(sheet)
    pitch = side / 9
    steps = range(-6, 7)
    if texture == "striped":
        for i in steps:
            y = centre[1] + i * pitch
            pen.rectangle((0, y - pitch / 4, side, y + pitch / 4), fill=mark)
    if texture == "dotted":
        for i, j in itertools.product(steps, steps):
            shift = pitch / 2 if j % 2 else 0.0
            disc(pen, (centre[0] + i * pitch + shift, centre[1] + j * pitch * 0.9), pitch * 0.27, mark)
    if texture == "checkered":
        for i, j in itertools.product(steps, steps):
            if (i + j) % 2:
                x, y = centre[0] + i * pitch * 0.8, centre[1] + j * pitch * 0.8
                pen.rectangle((x, y, x + pitch * 0.8, y + pitch * 0.8), fill=mark)
    return sheet


def draw_detail(canvas: Image.Image, detail: str, centre: tuple[float, float], radius: float) -> None:
    """Adds eyes, a hat or a flag to an object that is there."""
    pen, (x, y) = ImageDraw.Draw(canvas), centre
    if detail == "with eyes":
        for offset in (-0.31, 0.31):
            spot = (x + offset * radius, y - 0.05 * radius)
            disc(pen, spot, radius * 0.27, (255, 255, 255))
            disc(pen, spot, radius * 0.15, (20, 20, 30))
    if detail == "with a hat":
        top = y - radius * 0.8
        pen.rectangle((x - radius * 0.5, top - radius * 0.1, x + radius * 0.5, top + radius * 0.06), fill=(25, 25, 35))
        pen.rectangle((x - radius * 0.28, top - radius * 0.55, x + radius * 0.28, top), fill=(25, 25, 35))
    if detail == "with a flag":
        pole, top = x + radius * 0.75, y - radius * 1.15
        pen.line((pole, top, pole, y + radius * 0.6), fill=(245, 245, 245), width=max(2, int(radius * 0.12)))
        pen.polygon(
            [(pole, top), (pole + radius * 0.6, top + radius * 0.22), (pole, top + radius * 0.45)], fill=(220, 40, 50)
        )


def disc(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: object) -> None:
    """A filled circle."""
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)  # type: ignore[arg-type]


def _polar(angles_and_radii: list[tuple[float, float]]) -> Points:
    """Unit polygon from (turn in degrees clockwise from the top, distance)."""
    return [(r * math.sin(math.radians(a)), -r * math.cos(math.radians(a))) for a, r in angles_and_radii]


def _polygon(points: Points) -> Callable[..., None]:
    def draw(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
        pen.polygon([(centre[0] + radius * x, centre[1] + radius * y) for x, y in points], fill=255)

    return draw


def _ball(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    disc(pen, centre, radius * 0.92, 255)


def _ring(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    disc(pen, centre, radius, 255)
    disc(pen, centre, radius * 0.42, 0)


def _moon(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    disc(pen, centre, radius, 255)
    disc(pen, (centre[0] + radius * 0.55, centre[1] - radius * 0.25), radius * 0.72, 0)


def _fish(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    x, y = centre
    pen.ellipse((x - radius * 1.05, y - radius * 0.62, x + radius * 0.6, y + radius * 0.62), fill=255)
    _polygon([(0.35, 0.0), (1.15, -0.7), (1.0, 0.0), (1.15, 0.7)])(pen, centre, radius)


def _flower(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    for x, y in _polar([(60.0 * k, 0.62) for k in range(6)]):
        disc(pen, (centre[0] + radius * x, centre[1] + radius * y), radius * 0.4, 255)
    disc(pen, centre, radius * 0.45, 255)


def _heart_points() -> Points:
    turns = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    x = 16 * np.sin(turns) ** 3
    y = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return [(float(a) / 16.5, -float(b) / 16.5) for a, b in zip(x, y, strict=True)]


KINDS: dict[str, Callable[..., None]] = {
    "ball": _ball,
    "box": _polygon([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]),
    "star": _polygon(_polar([(36.0 * k, 1.1 if k % 2 == 0 else 0.45) for k in range(10)])),
    "heart": _polygon(_heart_points()),
    "ring": _ring,
    "moon": _moon,
    "cross": _polygon(
        [
            (-0.35, -1),
            (0.35, -1),
            (0.35, -0.35),
            (1, -0.35),
            (1, 0.35),
            (0.35, 0.35),
            (0.35, 1),
            (-0.35, 1),
            (-0.35, 0.35),
            (-1, 0.35),
            (-1, -0.35),
            (-0.35, -0.35),
        ]
    ),
    "house": _polygon(
        [(-0.75, 0.95), (-0.75, -0.1), (-1.0, -0.1), (0, -1.05), (1.0, -0.1), (0.75, -0.1), (0.75, 0.95)]
    ),
    "tree": _polygon([(0, -1.15), (0.95, 0.5), (0.22, 0.5), (0.22, 1.05), (-0.22, 1.05), (-0.22, 0.5), (-0.95, 0.5)]),
    "fish": _fish,
    "flower": _flower,
    "kite": _polygon([(0, -1.1), (0.8, -0.2), (0, 1.15), (-0.8, -0.2)]),
}
