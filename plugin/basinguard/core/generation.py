"""Which Stable Diffusion a file is of, by the width of the text states that its UNet attends to."""

from __future__ import annotations

XL = 2048  # of two text encoders' states beside each other: neither alone tells it
NAMES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", XL: "Stable Diffusion XL"}


def name_of(width: int | None) -> str:
    """What a model is called whose UNet attends to text states this wide.

    Example:
        >>> name_of(1024)
        'Stable Diffusion 2.x'
    """
    other = (
        f"a model with text states {width} wide" if width else "a model that does not say how wide its text states are"
    )
    return NAMES.get(width or 0, other)
