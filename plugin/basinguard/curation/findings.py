"""What was noticed about one image, and the index it adds up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from ..core.schema import Schema
from .folder import Item


class Finding(Schema):
    """One thing noticed about one image.

    Attributes:
        code: short name, such as "copies" or "caption-unique".
        message: the same in words, with the numbers it rests on.
        weight: how much it adds to the risk index, in [0, 1); 0 = worth knowing, no more.
    """

    code: str
    message: str
    weight: Annotated[float, Field(ge=0, lt=1)] = 0.0


Findings = Mapping[int, Sequence[Finding]]  # by index into the scan


def risk_index(findings: Sequence[Finding]) -> float:
    """How likely an image is to be memorized compared with others of the set: 1 - prod(1 - weight), in [0, 1).

    An index for ordering, not a probability: it is made of causes that the literature names, with weights that nobody
    has calibrated. `guard` measures the real thing during training.

    Source: causes: Carlini et al., arXiv 2301.13188 (copies); Somepalli et al., arXiv 2305.20086 (specific captions);
        Webster, arXiv 2305.08694 (verbatim copies of rare pictures).

    Example:
        >>> risk_index([Finding(code="a", message="", weight=0.5), Finding(code="b", message="", weight=0.5)])
        0.75
    """
    return round(1 - math.prod(1 - finding.weight for finding in findings), 4)


def about_file(item: Item, *, smallest: int = 256, longest_ratio: float = 3.0) -> list[Finding]:
    """What the file itself says: frames, rotation, transparency, mode, size and proportions."""
    facts = item.facts
    ratio = max(facts.width, facts.height) / min(facts.width, facts.height)
    colours = (
        "; its colours are converted to sRGB"
        if facts.profile_fits
        else f", which is not one for {facts.mode}: its colours are taken as they are"
    )
    notes = [
        ("animated", facts.animated, "has several frames; only the first is used"),
        ("rotated", facts.rotated, "is rotated by its EXIF header, which some trainers ignore"),
        (
            "exif",
            bool(facts.exif),
            f"has a bad EXIF block, ignored as far as it is bad: {facts.exif}; look whether the picture stands upright",
        ),
        ("alpha", facts.alpha, "has transparent pixels, shown and trained here on white; some trainers take black"),
        ("profile", bool(facts.profile), f"has the colour profile {facts.profile}{colours}"),
        ("mode", facts.mode not in ("RGB", "RGBA", "P", "L", "LA"), f"has pixel mode {facts.mode}; convert it to RGB"),
        (
            "small",
            min(facts.width, facts.height) < smallest,
            f"{facts.width} x {facts.height}: a side below {smallest}",
        ),
        ("ratio", ratio > longest_ratio, f"{facts.width} x {facts.height}: much is cropped at {ratio:.1f} to 1"),
    ]
    return [Finding(code=code, message=message) for code, holds, message in notes if holds]


def about_copies(count: int) -> Finding:
    """A picture that the set shows `count` >= 2 times; every doubling counts alike.

    Source: Carlini et al., arXiv 2301.13188: extracted images are almost all among the most duplicated.
    """
    weight = min(0.95, 0.3 + 0.2 * math.log2(count))
    return Finding(code="copies", message=f"the set shows this picture {count} times", weight=round(weight, 4))


def about_alike(number: int, count: int) -> Finding:
    """One of `count` images that look alike and are different pictures: worth a look, no more."""
    others = "another" if count == 2 else f"{count - 1} others"
    return Finding(code="alike", message=f"looks like {others} (set {number} of look-alikes); not the same")


def about_blank(alpha: bool) -> Finding:
    """A picture that trains as one plain colour; with `alpha`, because it is seen on white."""
    why = "nothing of it is visible on white: put it on another ground" if alpha else "leave it out"
    return Finding(code="blank", message=f"trains as one plain colour; {why}", weight=0.3)


def about_dark(mode: str) -> Finding:
    """A picture that trains as almost black; with 16-bit pixels, perhaps because only some of the bits are used."""
    why = (
        "its values may be of 12 bits in a 16-bit file: scale them"
        if mode.startswith("I")
        else "look whether it should be"
    )
    return Finding(code="dark", message=f"trains as almost black; {why}")
