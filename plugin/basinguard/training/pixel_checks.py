"""Pixels that somebody else made: whether they are in the range that they should be, and red, green, blue.

The range is seen in the numbers. The order of colours is not: a VAE that was trained on pictures encodes and decodes
them better in their own order, but not always, and one of random weights, or for pictures of few colours, tells
nothing. No answer therefore proves nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..core.spread import spread

CHECKED, LEAST = 8, 5  # most images that are encoded and decoded, and fewest that say something
EXCEPTIONS = 8  # one image in so many may be better as it is given
CLEAR = 0.95  # share of the error that is left when colours are reversed, at most, before anything is said
USUAL = {-1: "(x + 1) / 2 undoes the usual normalisation", 0: "2 * x - 1 is the usual normalisation"}


def require_unit_pixels(pixels: Tensor, subject: str = "images") -> None:
    """Refuses pixels that are not in 0..1.

    Raises:
        ValueError: says the range that they are in, and what to do where it is a usual one.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{subject}: pixels between {low:g} and {high:g}, expected RGB in 0..1{_hint(low, high, -1)}")


def require_centred_pixels(pixels: Tensor, subject: str = "pixel_values") -> None:
    """Refuses pixels that are not in -1..1, as Stable Diffusion's VAE takes them; all of a set, not of a few images.

    Raises:
        ValueError: says the range that they are in, and what to do where it is a usual one.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1 and high <= 1) or low >= 0:
        raise ValueError(f"{subject}: pixels between {low:g} and {high:g}, expected RGB in -1..1{_hint(low, high, 0)}")


def _hint(low: float, high: float, usual: int) -> str:
    """What to do with pixels in `usual`..1, or in no range that is known."""
    if usual <= low and high <= 1:
        return f"; {USUAL[usual]}"
    return "; normalise by mean 0.5 and deviation 0.5" if usual == 0 else ""


def warn_if_reversed(pipe: Any, pixels: Tensor) -> None:
    """Warns where the pipeline's VAE reads the pixels clearly better as blue, green, red.

    Args:
        pipe: whose VAE encodes and decodes.
        pixels: [N, 3, H, W] in 0..1; few of them are tried.
    """
    chosen = pixels[spread(len(pixels), min(CHECKED, len(pixels)))]
    if len(chosen) < LEAST:
        return
    given, reversed_ = (reconstruction_error(pipe.vae, part) for part in (chosen, chosen.flip(1)))
    better_as_given = int((given < reversed_).sum())
    if better_as_given <= len(chosen) // EXCEPTIONS and float(reversed_.mean()) <= CLEAR * float(given.mean()):
        warnings.warn(
            f"the model's VAE reads {len(chosen) - better_as_given} of {len(chosen)} training images better with red "
            f"and blue exchanged (error {float(reversed_.mean()):.3f} instead of {float(given.mean()):.3f}): are they "
            "BGR? The guard compares samples with them as RGB",
            stacklevel=3,
        )


@torch.no_grad()
def reconstruction_error(vae: Any, pixels: Tensor) -> Tensor:
    """Root mean square difference of each image in -1..1 and what the VAE makes of it, [N].

    Args:
        vae: a diffusers `AutoencoderKL`.
        pixels: [N, 3, H, W] in 0..1.
    """
    weight = next(vae.parameters())
    errors = []
    for image in pixels.split(1):
        image = (image * 2 - 1).to(weight.device, weight.dtype)
        decoded = vae.decode(vae.encode(image).latent_dist.mean).sample
        errors.append((decoded - image).float().square().mean().sqrt().cpu())
    return torch.stack(errors)
