"""Twelve families of pictures that look alike and are all different, drawn here so that anyone can make the same ones.

`draw(family, seed, count)` gives `count` pictures of one set: what they share is drawn from the set's seed, and what
differs is drawn so that no two of a set show the same (`content` is in the returned captions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from lookalike_drawing import FINE, SIDE, Colour, Pen, any_colour, around, averaged, canvas, photograph, write_lines
from PIL import Image, ImageDraw, ImageFilter, ImageFont


def draw(family: str, seed: int, count: int) -> list[tuple[Image.Image, str]]:
    """`count` different pictures of one set of a family, each with a caption that says what it shows."""
    rng = np.random.default_rng((seed, list(FAMILIES).index(family)))
    return list(FAMILIES[family](rng, count))


def dials(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    rim, face, hand = any_colour(rng, 60), any_colour(rng, 200), any_colour(rng, 0, 110)
    for minute in rng.choice(144, count, replace=False):
        image, pen = canvas((255, 255, 255))
        pen.ellipse(around(0.5, 0.5, 0.46), rim)
        pen.ellipse(around(0.5, 0.5, 0.38), face)
        for hour in range(12):
            x, y = 0.5 + 0.34 * math.sin(hour * math.pi / 6), 0.5 - 0.34 * math.cos(hour * math.pi / 6)
            pen.ellipse(around(x, y, 0.012), hand)
        for turn, length, width in ((minute / 144, 0.18, 0.03), (minute % 12 / 12, 0.29, 0.022)):
            angle, s = 2 * math.pi * turn, SIDE * FINE
            end = (0.5 + length * math.sin(angle)) * s, (0.5 - length * math.cos(angle)) * s
            pen.line((0.5 * s, 0.5 * s, *end), hand, int(width * s))
        yield averaged(image), f"a clock at {minute // 12}:{5 * (minute % 12):02d}"


def flags(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    colours = {"red": (206, 17, 38), "green": (0, 122, 61), "blue": (0, 38, 127), "white": (255, 255, 255),
               "yellow": (252, 209, 22), "black": (20, 20, 20), "orange": (255, 136, 62)}  # fmt: skip
    upright = bool(rng.integers(2))
    choices = [(a, b, c) for a in colours for b in colours for c in colours if a != b != c]
    for number in rng.choice(len(choices), count, replace=False):
        image, pen = canvas((235, 235, 235))
        s, names = SIDE * FINE, choices[number]
        for band, name in enumerate(names):
            low, high = band / 3, (band + 1) / 3
            box = (
                (0.05 + 0.9 * low, 0.2, 0.05 + 0.9 * high, 0.8)
                if upright
                else (0.05, 0.2 + 0.6 * low, 0.95, 0.2 + 0.6 * high)
            )
            pen.rectangle([v * s for v in box], colours[name])
        yield averaged(image), f"a flag of {', '.join(names)}"


def _smiley(pen: Pen, mood: tuple[int, int, int, int]) -> None:
    s = SIDE * FINE
    eyes, mouth, brows, extra = mood
    for x in (0.36, 0.64):
        if eyes == 0:
            pen.ellipse(around(x, 0.42, 0.045), (60, 40, 20))
        elif eyes == 1:
            pen.arc(around(x, 0.43, 0.05), 180, 360, (60, 40, 20), 14)
        elif eyes == 2:
            pen.line([(x - 0.05) * s, 0.42 * s, (x + 0.05) * s, 0.42 * s], (60, 40, 20), 14)
        else:
            pen.ellipse(around(x, 0.42, 0.06), (255, 255, 255))
            pen.ellipse(around(x, 0.42, 0.025), (60, 40, 20))
        if brows:
            lift = 0.03 if brows == 1 else -0.03
            pen.line([(x - 0.06) * s, (0.31 + lift) * s, (x + 0.06) * s, (0.31 - lift) * s], (60, 40, 20), 12)
    if mouth == 0:
        pen.arc(around(0.5, 0.55, 0.18), 20, 160, (60, 40, 20), 16)
    elif mouth == 1:
        pen.arc(around(0.5, 0.8, 0.18), 200, 340, (60, 40, 20), 16)
    elif mouth == 2:
        pen.line([0.38 * s, 0.68 * s, 0.62 * s, 0.68 * s], (60, 40, 20), 16)
    else:
        pen.ellipse(around(0.5, 0.68, 0.07), (60, 40, 20))
    if extra == 1:
        pen.ellipse(around(0.7, 0.58, 0.04), (90, 170, 250))
    elif extra == 2:
        pen.arc((0.3 * s, 0.0, 0.7 * s, 0.16 * s), 0, 360, (120, 190, 240), 16)


def emoji(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    skin = [(255, 204, 77), (247, 222, 206), (191, 121, 72), (124, 83, 62)][int(rng.integers(4))]
    for number in rng.choice(4 * 4 * 3 * 3, count, replace=False):
        mood = number % 4, number // 4 % 4, number // 16 % 3, number // 48
        image, pen = canvas((255, 255, 255))
        pen.ellipse(around(0.5, 0.52, 0.42), skin)
        _smiley(pen, mood)
        yield averaged(image), f"a face, mood {number}"


def products(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """One shirt with folds in several colours, on one ground; colours at least 24 levels apart."""
    s, shade = SIDE * FINE, np.asarray(photograph(rng, SIDE).convert("L"), np.float32) / 255
    ground = np.full((SIDE, SIDE, 3), any_colour(rng, 225), np.float32)
    mask, pen = Image.new("L", (s, s)), None
    pen = ImageDraw.Draw(mask)
    places = (
        "0.3,0.2 0.42,0.16 0.5,0.2 0.58,0.16 0.7,0.2 0.88,0.38 0.77,0.47 "
        "0.71,0.4 0.71,0.85 0.29,0.85 0.29,0.4 0.23,0.47 0.12,0.38"
    )
    outline = [tuple(map(float, place.split(","))) for place in places.split()]
    pen.polygon([(x * s, y * s) for x, y in outline], 255)
    inside = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)[..., None] / 255
    colours: list[Colour] = []
    while len(colours) < count:
        colour = any_colour(rng, 30, 240)
        if all(max(abs(a - b) for a, b in zip(colour, other, strict=True)) >= 24 for other in colours):
            colours.append(colour)
    for colour in colours:
        shirt = np.array(colour, np.float32) * (0.7 + 0.5 * shade[..., None])
        pixels = ground * (1 - inside) + shirt * inside
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"a shirt in colour {colour}"


def sprites(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """A pixel figure whose arms, legs and item take several poses."""
    body, ground = [any_colour(rng) for _ in range(4)], any_colour(rng, 120)
    base = rng.random((8, 4)) < 0.7
    for number in rng.choice(5 * 5 * 3 * 4, count, replace=False):
        arms, legs, item, step = number % 5, number // 5 % 5, number // 25 % 3, number // 75
        grid = np.full((24, 24, 3), ground, np.uint8)
        half = np.where(base[..., None], np.array(body[0], np.uint8), np.array(body[1], np.uint8))
        grid[6:14, 8 + step : 12 + step] = half
        grid[6:14, 12 + step : 16 + step] = half[:, ::-1]
        grid[8 + arms - 1 : 9 + arms, 5 + step : 8 + step] = body[2]
        grid[8 + (arms + 2) % 5 : 9 + (arms + 2) % 5, 16 + step : 19 + step] = body[2]
        for leg in (0, 1):
            left = (9, 13)[leg] + step + (legs - 2 if leg else 2 - legs) // 2
            grid[14 : 18 + (legs + leg) % 2, left : left + 2] = body[3]
        if item:
            grid[4 : 4 + 2 * item, 18:20] = body[1 + item]
        yield Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.NEAREST), f"a figure, pose {number}"


def screenshots(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """One program: the same bars and buttons, another document, or only another number in the status line."""
    s, bar, ground = SIDE * FINE, any_colour(rng, 40, 160), any_colour(rng, 235)
    shared = int(rng.integers(2**31))
    for number in range(count):
        image, pen = canvas(ground)
        pen.rectangle((0, 0, s, 0.09 * s), bar)
        pen.rectangle((0, 0.09 * s, 0.2 * s, s), tuple(min(255, v + 60) for v in bar))
        for button in range(6):
            pen.rounded_rectangle(
                [v * s for v in (0.03 + 0.15 * button, 0.02, 0.14 + 0.15 * button, 0.07)], 8, (240, 240, 240)
            )
        write_lines(pen, np.random.default_rng(shared), (0.02, 0.12, 0.19, 0.9), 0.022, (250, 250, 250))
        document = shared if number % 2 else shared + 1 + number
        write_lines(pen, np.random.default_rng(document), (0.23, 0.13, 0.97, 0.9), 0.025, (30, 30, 30))
        pen.text((0.23 * s, 0.93 * s), f"page {number + 1} of {count}", (30, 30, 30), ImageFont.load_default(0.03 * s))
        yield averaged(image), f"a screenshot, page {number + 1}"


def scans(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """Pages of one book: the same type area and header, another text, a little skewed and noisy."""
    paper = any_colour(rng, 225, 246)
    for number in range(count):
        image, pen = canvas(paper)
        s = SIDE * FINE
        pen.text((0.4 * s, 0.05 * s), "CHAPTER TWO", (40, 40, 40), ImageFont.load_default(0.03 * s))
        write_lines(pen, rng, (0.12, 0.12, 0.88, 0.92), 0.022, (40, 40, 40))
        pen.text((0.49 * s, 0.94 * s), str(number + 20), (40, 40, 40), ImageFont.load_default(0.025 * s))
        page = image.rotate(rng.uniform(-0.4, 0.4), Image.Resampling.BICUBIC, fillcolor=paper)
        noisy = np.asarray(averaged(page), np.float32) + rng.normal(0, 3, (SIDE, SIDE, 3))
        yield Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), f"a page, number {number + 20}"


def faces(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """One soft-shaded head before one ground; brows, eyes, gaze and mouth move by a few pixels."""
    s, skin, hair, ground = (
        SIDE * FINE,
        any_colour(rng, 120, 230),
        any_colour(rng, 0, 120),
        photograph(rng).filter(ImageFilter.GaussianBlur(6)),
    )
    expressions = rng.permutation(
        [(a, b, c, d) for a in range(4) for b in range(3) for c in range(4) for d in range(3)]
    )
    for brow, lid, mouth, gaze in expressions[:count].tolist():
        image = ground.resize((s, s))
        pen = ImageDraw.Draw(image)
        pen.ellipse((0.22 * s, 0.1 * s, 0.78 * s, 0.95 * s), hair)
        pen.ellipse((0.28 * s, 0.2 * s, 0.72 * s, 0.9 * s), skin)
        dark = tuple(v // 3 for v in skin)
        for x, side in ((0.4, -1), (0.6, 1)):
            pen.ellipse((x * s - 50, (0.46 - 0.02) * s, x * s + 50, (0.46 + 0.02 - 0.008 * lid) * s), (245, 245, 245))
            pen.ellipse(around(x + 0.015 * (gaze - 1), 0.458, 0.017), dark)
            pen.line(
                [(x - 0.06) * s, (0.4 - 0.01 * brow * side) * s, (x + 0.06) * s, (0.4 + 0.01 * brow * side) * s],
                dark,
                12,
            )
        pen.line([0.5 * s, 0.5 * s, 0.48 * s, 0.6 * s, 0.52 * s, 0.61 * s], dark, 6)
        pen.arc((0.4 * s, (0.66 - 0.02 * mouth) * s, 0.6 * s, (0.74 + 0.02 * mouth) * s), 20, 160, dark, 12 + 4 * mouth)
        shading = (
            np.asarray(image.filter(ImageFilter.GaussianBlur(2)), np.float32)
            * np.linspace(1.05, 0.8, s, dtype=np.float32)[:, None]
        )
        yield (
            averaged(Image.fromarray(shading.clip(0, 255).astype(np.uint8))),
            f"a portrait, {brow} {lid} {mouth} {gaze}",
        )


def frames(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """A camera that stands still, noise in every frame, and a shaded ball that rolls; the first has none yet."""
    ground, colour = np.asarray(photograph(rng), np.float32), np.array(any_colour(rng), np.float32)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    high, low = rng.uniform(0.1, 0.4), rng.uniform(0.5, 0.8)
    for number in range(count):
        cx, cy, r = number / count * 1.1 - 0.1, high + (low - high) * abs(math.sin(number)), 0.09
        distance = np.hypot(x - cx, y - cy) / r
        light = np.clip(1.1 - np.hypot(x - cx + 0.03, y - cy + 0.03) / r * 0.7, 0.2, 1.0)
        ball = np.clip((1 - distance) * r * SIDE, 0, 1)[..., None]
        pixels = ground * (1 - ball) + colour * light[..., None] * ball + rng.normal(0, 3, ground.shape)
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"frame {number} of a video"


def textures(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """Patches of one material, drawn anew each time; brick courses keep their place."""
    brick, mortar = any_colour(rng, 80, 200), any_colour(rng, 190, 230)
    for number in range(count):
        image, pen = canvas(mortar)
        s = SIDE * FINE
        for row in range(12):
            for column in range(-1, 7):
                tone = rng.uniform(0.75, 1.2)
                x, y = (column + 0.5 * (row % 2)) * s / 6, row * s / 12
                pen.rectangle(
                    (x + 6, y + 6, x + s / 6 - 6, y + s / 12 - 6), tuple(int(min(255, v * tone)) for v in brick)
                )
        pixels = np.asarray(averaged(image), np.float32) + rng.normal(0, 8, (SIDE, SIDE, 1))
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"a wall, patch {number}"


def daytimes(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """One street at several hours: light, tint and which windows are lit."""
    heights, walls = rng.uniform(0.3, 0.75, 6), [any_colour(rng, 70, 200) for _ in range(6)]
    grain = np.asarray(photograph(rng).convert("L"), np.float32)[..., None] / 255
    for number in range(count):
        light, s, window = 1 - 0.8 * number / count, SIDE * FINE, 0
        image, pen = canvas(tuple(int(v * light) for v in (150, 190, 240)))
        for house, (height, wall) in enumerate(zip(heights, walls, strict=True)):
            pen.rectangle((house * s / 6, (1 - height) * s, (house + 1) * s / 6, s), wall)
            for row in range(int(height * 10)):
                for column in range(3):
                    lit, window = window == number or rng.random() < 0.7 * (1 - light), window + 1
                    x, y = (house + 0.15 + 0.27 * column) * s / 6, (1 - height + 0.04 + 0.09 * row) * s
                    pen.rectangle((x, y, x + 0.03 * s, y + 0.05 * s), (255, 230, 150) if lit else (50, 60, 80))
        pixels = np.asarray(averaged(image), np.float32) * (0.7 + 0.6 * grain) * (light, light, 0.15 + 0.85 * light)
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"a street at hour {number}"


def charts(rng: np.random.Generator, count: int) -> Iterator[tuple[Image.Image, str]]:
    """One template with axes and title, other data; in every other only one bar differs from the one before."""
    bars, ink, values = any_colour(rng, 20, 200), (60, 60, 60), rng.uniform(0.1, 0.9, 10)
    for number in range(count):
        values = values.copy()
        places = [int(rng.integers(10))] if number % 2 else list(range(10))
        values[places] = (values[places] + rng.uniform(0.15, 0.6, len(places))) % 0.9
        image, pen = canvas((255, 255, 255))
        s = SIDE * FINE
        pen.text((0.3 * s, 0.03 * s), "Revenue by region", ink, ImageFont.load_default(0.05 * s))
        pen.line([0.1 * s, 0.12 * s, 0.1 * s, 0.9 * s, 0.95 * s, 0.9 * s], ink, 5)
        for tick in range(6):
            pen.text((0.03 * s, (0.88 - 0.15 * tick) * s), str(20 * tick), ink, ImageFont.load_default(0.03 * s))
        for place, value in enumerate(values):
            x = (0.13 + 0.08 * place) * s
            pen.rectangle((x, (0.9 - 0.75 * value) * s, x + 0.055 * s, 0.9 * s), bars)
        yield averaged(image), f"a chart, version {number}"


FAMILIES: dict[str, Callable[[np.random.Generator, int], Iterator[tuple[Image.Image, str]]]] = {
    "dials": dials,
    "flags": flags,
    "emoji": emoji,
    "product colours": products,
    "sprites": sprites,
    "screenshots": screenshots,
    "scanned pages": scans,
    "faces": faces,
    "video frames": frames,
    "textures": textures,
    "day and night": daytimes,
    "charts": charts,
}
