"""Real art for TinyWorld: Noto emoji from the npm package `emoji-datasource-google`, with their names and families.

The package is not part of basinguard. `npm pack emoji-datasource-google@16` and unpacking it gives the folder; its
pictures are Noto Emoji by Google, Apache License 2.0 (the package's README; github.com/googlefonts/noto-emoji).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from ..core.images import load_rgb
from .scenes import SIZE

LICENCE = "Noto Emoji, Apache License 2.0, from the npm package emoji-datasource-google"
GROUPS = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")
NOT_ART = ("time", "sky & weather")  # clock faces and moons: a dozen of one picture
HELDOUT_SHARE = 0.3  # of the families


@dataclass(frozen=True)
class Emoji:
    """One picture: its file, what a person would call it, and its family such as "animal-bird"."""

    path: Path
    caption: str
    family: str

    def draw(self) -> Image.Image:
        """The picture on white, 64x64 pixels."""
        return load_rgb(self.path).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class EmojiSet:
    """All usable emoji of an unpacked package, split so that no family is both trained on and held out."""

    train: tuple[Emoji, ...]
    heldout: tuple[Emoji, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the package.

        Raises:
            FileNotFoundError: `folder` is no unpacked `emoji-datasource-google`.
        """
        index, pictures = folder / "emoji.json", folder / "img" / "google" / "64"
        if not index.is_file() or not pictures.is_dir():
            raise FileNotFoundError(
                f"{folder}: no emoji.json and img/google/64 there; unpack `npm pack emoji-datasource-google@16` and "
                "give its folder `package`"
            )
        listed = [_emoji(pictures, entry) for entry in json.loads(index.read_text(encoding="utf-8")) if _usable(entry)]
        emoji = sorted((e for e in listed if e.path.is_file()), key=lambda e: e.path.name)
        families = sorted({e.family for e in emoji})
        heldout = set(random.Random(0).sample(families, round(HELDOUT_SHARE * len(families))))
        return cls(
            train=tuple(e for e in emoji if e.family not in heldout),
            heldout=tuple(e for e in emoji if e.family in heldout),
        )


def _usable(entry: dict[str, str]) -> bool:
    return entry["category"] in GROUPS and entry["subcategory"] not in NOT_ART


def _emoji(pictures: Path, entry: dict[str, str]) -> Emoji:
    name = entry["short_name"].replace("_", " ").replace("-", " ")
    article = "an" if name[0] in "aeiou" else "a"
    return Emoji(pictures / entry["image"], f"{article} {name}", entry["subcategory"])
