"""Sampling that begins at a noised training picture, as img2img does: does the rest of it come back?

The attacker has the picture already, so what this shows is that the model knows it. At little noise every model gives
it back: a strength says something only where the base model's row is empty.

Source: GenAI Confessions, arXiv 2501.06399 (img2img at several strengths); SDEdit, arXiv 2108.01073.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..basin.trajectories import GuidedModel, Pairs
from .attack import Attack
from .target import Attacker

STRENGTHS = (0.6, 0.8, 0.95)  # share of the noise that is put on; 1 is plain sampling
QUICK = 0.8


def start_of(strength: float, steps: int) -> int:
    """Grid position at which a strength begins.

    Example:
        >>> start_of(0.75, 20), start_of(1.0, 20)
        (5, 0)
    """
    return steps - max(1, round(strength * steps))


def noised(model: GuidedModel, latents: Tensor, noise: Tensor, start: int) -> Tensor:
    """Latents with the noise of a grid position, [N, ...]: signal x_0 + noise eps.

    Source: Ho et al., arXiv 2006.11239, eq. 4.
    """
    now = model.timesteps[start : start + 1]
    return float(model.schedule.signal(now)) * latents + float(model.schedule.noise(now)) * noise


def sample_from_picture(strength: float, attacker: Attacker, pairs: Pairs) -> Tensor:
    """Each training picture noised, then sampled under its own caption."""
    start = start_of(strength, attacker.guard.plan.timesteps)
    begin = noised(attacker.guided(()), attacker.latents(pairs.prompt), pairs.noise, start)
    return attacker.sample(attacker.captions, pairs.prompt, begin, start=start)


def _cost(strength: float) -> Callable[[int], int]:
    return lambda steps: 2 * (steps - start_of(strength, steps))


IMAGE_TO_IMAGE = tuple(
    Attack(
        "image to image",
        f"strength {strength:g}",
        "2501.06399",
        partial(sample_from_picture, strength),
        _cost(strength),
        quick=strength == QUICK,
        image=True,
    )
    for strength in STRENGTHS
)
