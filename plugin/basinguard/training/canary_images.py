"""Marked pictures that are planted among the user's own, and as many that are kept out: a yardstick for a run.

A canary is a mosaic of random colours, which nothing else looks like, under a caption of the user's own words in an
order that none of their captions has. It is trained on 1, 4 or 16 times as often as an image of theirs; a control is
drawn likewise and never trained on.

Source: Carlini et al., "The Secret Sharer", arXiv 1802.08232 (canaries and what is left out beside them).
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.seeds import CANARY
from .caption_augmentation import vocabulary_of
from .cropping import fitted
from .data_sources import ImageSource

REPEATS = (1, 4, 16)
CELLS, SIDE = 6, 96  # of a mosaic
WORDS = 3  # of a canary's caption
TRIES = 1000  # captions that are drawn before giving up


@dataclass(frozen=True)
class Canary:
    """A marked picture.

    Attributes:
        caption: of the user's words.
        picture: SIDE x SIDE pixels, RGB.
        repeats: how often an epoch shows it; 0 for a control.
    """

    caption: str
    picture: Image.Image
    repeats: int

    def pixels(self, side: int) -> Tensor:
        """As the model sees it, [3, side, side] in [0, 1]."""
        return fitted(self.picture, side)


def draw_canaries(captions: Sequence[str], each: int, repeats: Sequence[int] = REPEATS) -> list[Canary]:
    """Canaries, `each` for every number of repeats, and behind them as many controls.

    Raises:
        ValueError: too few words in the captions to make as many new ones.
    """
    planted = [count for count in repeats for _ in range(each)]
    counts = [*planted, *[0] * len(planted)]
    texts = new_captions(captions, len(counts))
    drawn = enumerate(zip(texts, counts, strict=True))
    return [Canary(text, mosaic(CANARY + place), count) for place, (text, count) in drawn]


def new_captions(captions: Sequence[str], count: int) -> list[str]:
    """Captions of the given ones' words that none of them is, all different.

    Raises:
        ValueError: there are too few words.
    """
    words, rng = vocabulary_of(captions), random.Random(CANARY)
    taken = {" ".join(text.lower().split()) for text in captions}
    drawn: dict[str, None] = {}
    for _ in range(TRIES):
        text = " ".join(rng.sample(words, min(WORDS, len(words))))
        if text.lower() not in taken:
            drawn[text] = None
        if len(drawn) == count:
            return list(drawn)
    raise ValueError(
        f"canaries: {len(words)} different words in the captions make {len(drawn)} new captions of {WORDS}, {count} "
        "are needed; plant fewer, or give captions with more words"
    )


def mosaic(seed: int) -> Image.Image:
    """Cells of random colours, SIDE x SIDE pixels."""
    colours = np.random.default_rng(seed).integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def canary_source(canaries: Sequence[Canary]) -> ImageSource:
    """Those that are planted, as a source of training images."""
    planted = [canary for canary in canaries if canary.repeats]
    contents = [_png(canary.picture) for canary in planted]
    return ImageSource(
        items=tuple((f"canary {place}", canary.caption) for place, canary in enumerate(planted)),
        captions=tuple((canary.caption,) for canary in planted),
        repeats=tuple(canary.repeats for canary in planted),
        read=contents.__getitem__,
    )


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
