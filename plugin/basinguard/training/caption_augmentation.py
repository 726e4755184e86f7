"""What makes a caption fit its image less well while training, so that it is less of a key.

Pure functions for the data module to call for each sample. All randomness comes from the generator that is given.

Source: Somepalli et al., "Understanding and Mitigating Copying in Diffusion Models", arXiv 2305.20086, section 6:
multiple captions (MC), Gaussian noise (GN), random caption replacement (RC), random token replacement and addition
(RT), caption word repetition (CWR).
Caption dropout: Ho and Salimans, arXiv 2207.12598, section 3.2.

Warning:
    Dropping captions trains the unconditional branch. On a small set that branch then memorizes too, and delaying
    guidance cannot escape it: measure it (`Report.risk_uncond`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionAugmentation:
    """What the data module may do to captions and repeats while training; nothing of it by default.

    Args:
        draw: one of an image's captions at random each time, instead of always the first (MC).
        dropout: share of captions replaced by "" (Ho and Salimans, arXiv 2207.12598); see the module's warning.
        replace: share of captions replaced by random words (RC).
        replace_words: share of words replaced by random ones (RT).
        insert_words: share of words that a random one follows (RT).
        repeat_words: share of words that are said twice (CWR).
        noise: standard deviation of Gaussian noise on the text embeddings (GN; the paper uses 0.1).
        most_repeats: no image is shown more often in an epoch; None for no cap.

    Example:
        >>> CaptionAugmentation(draw=True).caption(["a cat", "a tabby"], (), random.Random(1))
        'a cat'
    """

    draw: bool = False
    dropout: float = 0.0
    replace: float = 0.0
    replace_words: float = 0.0
    insert_words: float = 0.0
    repeat_words: float = 0.0
    noise: float = 0.0
    most_repeats: int | None = None

    def __post_init__(self) -> None:
        for rate in (self.dropout, self.replace, self.replace_words, self.insert_words, self.repeat_words):
            _require_rate(rate)
        require_std(self.noise)
        if self.most_repeats is not None:
            cap_repeats((), self.most_repeats)

    def caption(self, captions: Sequence[str], vocabulary: Sequence[str], rng: random.Random) -> str:
        """The caption to train on this time.

        Args:
            captions: of the image; the first is the one used without augmentation.
            vocabulary: where random words come from, see `vocabulary_of`.
            rng: all randomness.
        """
        text = draw_caption(captions, rng) if self.draw else next(iter(captions), "")
        text = replace_caption(text, self.replace, vocabulary, rng)
        text = replace_words(text, self.replace_words, vocabulary, rng)
        text = insert_words(text, self.insert_words, vocabulary, rng)
        text = repeat_words(text, self.repeat_words, rng)
        return drop_caption(text, self.dropout, rng)

    def repeats(self, counts: Sequence[int]) -> list[int]:
        """How often an epoch shows each image, of how often the data set does."""
        return list(counts) if self.most_repeats is None else cap_repeats(counts, self.most_repeats)


def draw_caption(captions: Sequence[str], rng: random.Random) -> str:
    """One of an image's captions; "" when it has none (MC, the most effective of them)."""
    return rng.choice(captions) if captions else ""


def drop_caption(caption: str, rate: float, rng: random.Random) -> str:
    """The empty caption with probability `rate`, else the caption."""
    _require_rate(rate)
    return "" if rng.random() < rate else caption


def replace_caption(caption: str, rate: float, vocabulary: Sequence[str], rng: random.Random) -> str:
    """With probability `rate`, as many random words as the caption has (RC)."""
    _require_rate(rate)
    if not vocabulary or rng.random() >= rate:
        return caption
    return " ".join(rng.choice(vocabulary) for _ in caption.split())


def replace_words(caption: str, rate: float, vocabulary: Sequence[str], rng: random.Random) -> str:
    """Each word becomes a random one with probability `rate` (RT, replacement).

    Example:
        >>> replace_words("a red cat", 1.0, ["word"], random.Random(0))
        'word word word'
    """
    _require_rate(rate)
    if not vocabulary:
        return caption
    return " ".join(rng.choice(vocabulary) if rng.random() < rate else word for word in caption.split())


def insert_words(caption: str, rate: float, vocabulary: Sequence[str], rng: random.Random) -> str:
    """A random word follows each word with probability `rate` (RT, addition)."""
    _require_rate(rate)
    if not vocabulary:
        return caption
    longer = []
    for word in caption.split():
        longer.append(word)
        if rng.random() < rate:
            longer.append(rng.choice(vocabulary))
    return " ".join(longer)


def repeat_words(caption: str, rate: float, rng: random.Random) -> str:
    """With probability `rate` for each word, it is said again at a random place (CWR)."""
    _require_rate(rate)
    longer = caption.split()
    for word in caption.split():
        if rng.random() < rate:
            longer.insert(rng.randrange(len(longer) + 1), word)
    return " ".join(longer)


def cap_repeats(repeats: Sequence[int], most: int) -> list[int]:
    """Repeats of each image, none above `most`: an image seen half as often is memorized later.

    Example:
        >>> cap_repeats([1, 10, 3], most=3)
        [1, 3, 3]
    """
    if most < 1:
        raise ValueError(f"cap_repeats(most={most}): expected at least 1; to leave an image out, drop it")
    return [min(count, most) for count in repeats]


def vocabulary_of(captions: Sequence[str]) -> tuple[str, ...]:
    """Every word of the captions once, in order: random words then look like the set's own."""
    return tuple(dict.fromkeys(word for caption in captions for word in caption.split()))


def _require_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate {rate} given; expected a probability in [0, 1]")


def require_std(std: float) -> None:
    """Refuses a standard deviation below 0."""
    if not std >= 0:
        raise ValueError(f"noise {std} given; expected a standard deviation of at least 0")
