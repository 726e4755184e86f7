"""A control group where none was given: prompts recombined from the training captions, images drawn by the base model.

A set of five images cannot spare any. What the early alarms need is something that the model is not trained on, on the
same noise; what such a stand-in cannot tell is said in `unknowable`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, permutations

MOST = 8
NEUTRAL = (  # for sets that say the same of every image
    "a bowl of fruit on a table",
    "a street in the rain",
    "a mountain lake",
    "an old wooden chair",
    "a portrait of a woman",
    "a boat on the sea",
    "a cup of tea",
    "a tree in a field",
)

PLACES = ("in the snow", "on a beach", "in a city street", "at night", "beside a window", "on a red carpet")  # near it


def recombined_prompts(captions: Sequence[str], most: int = MOST) -> tuple[str, ...]:
    """Prompts that no image carries: the first half of one caption and the second half of another.

    A set that says the same of every image gets that elsewhere, so that the control is near the subject; neutral
    prompts fill up.

    Args:
        captions: of the training images.
        most: how many are wanted.

    Example:
        >>> recombined_prompts(["a red ball", "a blue box", "a red ball"], most=2)
        ('a blue ball', 'a red box')
    """
    words = [caption.split() for caption in dict.fromkeys(captions)]
    pairs = permutations(words, 2) if len(words) <= 64 else pairwise(words)
    made = (" ".join([*a[: (len(a) + 1) // 2], *b[(len(b) + 1) // 2 :]]) for a, b in pairs)
    originals = set(captions)
    if len(words) == 1:
        near = [" ".join([*words[0], place]) for place in PLACES]
        return tuple([*(p for p in near if p not in originals), *(n for n in NEUTRAL if n not in originals)][:most])
    new = sorted({prompt for prompt in made if prompt and prompt not in originals})
    random.Random(0).shuffle(new)
    return tuple([*sorted(new[:most]), *(n for n in NEUTRAL if n not in originals)][:most])


def unknowable(images: int, *, stand_in: bool, drawn: bool, samples: int, alpha: float) -> tuple[str, ...]:
    """What the guard cannot tell about a set, in words.

    Args:
        images: in the set.
        stand_in: whether its control prompts are `recombined`.
        drawn: whether its control images were drawn by the base model.
        samples: (caption, seed) pairs of a probe.
        alpha: risk that is allowed.
    """
    limits = []
    if stand_in:
        limits.append(
            "whether prompts that share no word with the set behave as the control does: its prompts are recombined "
            "from the training captions, may pull towards the images themselves, and then hide an early alarm"
        )
        limits.append("how held-out prompts are followed, and whether they copy: stand-ins are not sampled")
    if drawn:
        limits.append(
            "how real pictures that were kept aside would fare: the control images are the base model's own samples"
        )
    least = next((n for n in range(1, 10_000) if _upper_of_none(n) <= alpha), 0)
    if samples < least:
        limits.append(
            f"whether the risk is below {alpha:g} for sure, should nothing copy: {samples} samples leave up to "
            f"{_upper_of_none(samples):.2f} open; {least} would settle it"
        )
    if images < 10:
        limits.append(f"how the subject varies: {images} images are the whole evidence, and every number rests on them")
    return tuple(limits)


def _upper_of_none(n: int) -> float:
    """Upper end of Wilson's 95 % interval for no hit among n: z^2 / (n + z^2)."""
    return 1.959964**2 / (n + 1.959964**2)
