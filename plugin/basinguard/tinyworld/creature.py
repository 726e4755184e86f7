"""A creature with fixed parts and colours in any pose and place, and others of its kind: a subject to be taught.

Example:
    >>> picture = reduced(draw_creature(SUBJECT, "jumping", "with a hat", seed=3))
    >>> picture.size
    (64, 64)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .scenes import SIZE, SUPERSAMPLE, Points, background, disc, draw_detail, reduced, rgb

__all__ = ["POSES", "SUBJECT", "Creature", "draw_creature", "other_creature", "reduced"]

Colour = tuple[int, int, int]
WHITE, BLACK = (255, 255, 255), (20, 20, 30)


@dataclass(frozen=True)
class Pose:
    """How a creature is seen: a turn in degrees, feet apart, an arm up, eyes shut, and how high it stands (0 top)."""

    turn: float = 0.0
    stride: float = 0.28
    arm: bool = False
    asleep: bool = False
    height: tuple[float, float] = (0.5, 0.68)


POSES = {
    "standing": Pose(),
    "walking": Pose(turn=9, stride=0.6),
    "jumping": Pose(turn=-22, stride=0.75, height=(0.32, 0.45)),
    "waving": Pose(arm=True),
    "sleeping": Pose(turn=90, asleep=True, height=(0.62, 0.72)),
}


@dataclass(frozen=True)
class Creature:
    """What stays the same in every picture of one creature."""

    body: Colour
    belly: Colour
    horns: Colour
    tail: Colour
    feet: Colour
    eyes: int
    pointed: bool  # horns: pointed, or round


SUBJECT = Creature(
    body=(28, 150, 140),
    belly=(250, 222, 96),
    horns=(240, 112, 36),
    tail=(132, 60, 168),
    feet=(30, 44, 110),
    eyes=1,
    pointed=True,
)


def other_creature(seed: int) -> Creature:
    """Another creature of the kind, all of it drawn by chance: a picture of the class."""
    rng = np.random.default_rng(seed)
    body, belly, horns, tail, feet = (
        rgb(rng.uniform(), rng.uniform(0.4, 0.9), rng.uniform(0.45, 1.0)) for _ in range(5)
    )
    return Creature(body, belly, horns, tail, feet, eyes=int(rng.integers(1, 4)), pointed=bool(rng.uniform() < 0.5))


def draw_creature(creature: Creature, pose: str, detail: str, seed: int) -> Image.Image:
    """The creature in a TinyWorld landscape, on the large canvas (`reduced` averages it down).

    Args:
        creature: who.
        pose: one of `POSES`.
        detail: a scene's detail, `with a hat` or `with a flag`, or "".
        seed: fixes the landscape, the place, the size and which way it looks.
    """
    rng = np.random.default_rng(seed)
    side = SIZE * SUPERSAMPLE
    canvas, _ = background(rng, side)
    stance, radius = POSES[pose], rng.uniform(0.17, 0.24) * side
    centre = (rng.uniform(0.28, 0.72) * side, rng.uniform(*stance.height) * side)
    layer = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    _draw_parts(ImageDraw.Draw(layer), creature, stance, (side / 2, side / 2), radius)
    if rng.uniform() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.rotate(stance.turn + rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    canvas.paste(layer, (int(centre[0] - side / 2), int(centre[1] - side / 2)), layer)
    draw_detail(canvas, detail, (centre[0], centre[1] - 0.25 * radius), radius)
    return canvas


def _draw_parts(
    pen: ImageDraw.ImageDraw, creature: Creature, pose: Pose, centre: tuple[float, float], radius: float
) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        return centre[0] + radius * x, centre[1] + radius * y

    def oval(x: float, y: float, width: float, height: float, fill: Colour) -> None:
        pen.ellipse((*at(x - width, y - height), *at(x + width, y + height)), fill=fill)

    curl: Points = [at(0.7 + 0.55 * t, 0.45 - 0.5 * math.sin(2.6 * t)) for t in np.linspace(0, 1, 12)]
    pen.line(curl, fill=creature.tail, width=int(0.26 * radius), joint="curve")
    disc(pen, curl[-1], 0.2 * radius, creature.tail)
    for way in (-1, 1):
        oval(way * pose.stride, 0.98, 0.26, 0.2, creature.feet)
        if creature.pointed:
            pen.polygon([at(way * 0.62, -0.45), at(way * 0.7, -1.25), at(way * 0.18, -0.8)], fill=creature.horns)
        else:
            oval(way * 0.5, -0.92, 0.24, 0.3, creature.horns)
    oval(0, 0, 0.8, 0.98, creature.body)
    oval(0, 0.42, 0.48, 0.46, creature.belly)
    if pose.arm:
        pen.line([at(-0.62, 0.1), at(-1.15, -0.6)], fill=creature.body, width=int(0.26 * radius))
        disc(pen, at(-1.15, -0.6), 0.18 * radius, creature.horns)
    for place in np.arange(creature.eyes) - (creature.eyes - 1) / 2:
        size = 0.36 if creature.eyes == 1 else 0.25
        if pose.asleep:
            pen.line(
                [at(place * 0.5 - size, -0.35), at(place * 0.5 + size, -0.35)], fill=BLACK, width=int(0.1 * radius)
            )
        else:
            oval(place * 0.5, -0.35, size, size, WHITE)
            oval(place * 0.5 - 0.08, -0.33, size * 0.5, size * 0.5, BLACK)
