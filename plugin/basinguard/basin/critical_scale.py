"""Critical scale: how much noise a training image bears before the denoiser no longer brings it back.

No sampling, no decoding, no seed: the denoiser is applied again and again to the clean training latents at one fixed
noise level, and it is asked whether they stay. It grows before the first sample copies anything.

Source: "From Modes to Memories" (Lopez Amado, Fumero, Locatello, ISTA 2026), sections 3 and 4: D_s(y) = y - s *
eps(sqrt(abar) y, t), sigma_c = sup{s : |D_s^k(x) - x| <= r |x| for all k <= K}, with K = 16 and r = 0.25.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.sampling import EMPTY
from .trajectories import GuidedModel

STEPS = 16
RADIUS = 0.25


@dataclass(frozen=True)
class CriticalScale:
    """Critical scale of each image, with its caption and without.

    Attributes:
        with_caption, without: sigma_c, [N]; never outside the schedule: its smallest sigma where even that is not
            borne, its largest where all are.
    """

    with_caption: Tensor
    without: Tensor

    @property
    def caption_effect(self) -> Tensor:
        """log sigma_c with the caption less log sigma_c without: how much of the hold is the caption's, [N]."""
        return (self.with_caption / self.without).log()


def critical_scale(
    model: GuidedModel,
    latents: Tensor,
    prompt: Tensor,
    *,
    steps: int = STEPS,
    radius: float = RADIUS,
    resolution: int = 1,
) -> CriticalScale:
    """Critical scale of clean latents by bisection over the training timesteps, which are levels of log sigma.

    Args:
        model: what is measured; its grid and guidance scale play no part.
        latents: clean, [N, ...].
        prompt: index of each image's caption, [N].
        steps: applications of the denoiser that must be borne (K).
        radius: how far the latents may move, as a share of their length (r).
        resolution: timesteps that the answer may be left open by.

    Raises:
        ValueError: no latents, or a radius outside (0, 1).
        FloatingPointError: the model returned a value that is not finite.
    """
    if not len(latents) or not 0 < radius < 1 or steps < 1:
        raise ValueError(
            f"critical_scale of {len(latents)} images with radius={radius}, steps={steps}: expected at least 1 image, "
            "a radius in (0, 1) and at least 1 step"
        )
    x, prompts = torch.cat([latents, latents]), torch.cat([prompt, torch.full_like(prompt, EMPTY)])
    low, high = torch.zeros(len(x), dtype=torch.long), torch.full((len(x),), len(model.schedule.alphas_cumprod))
    while bool((open_ := high - low > resolution).any()):
        rows = open_.nonzero().squeeze(1)
        middle = (low[rows] + high[rows]) // 2
        borne = _borne(model, x[rows], prompts[rows], middle, steps, radius)
        low[rows], high[rows] = torch.where(borne, middle, low[rows]), torch.where(borne, high[rows], middle)
    sigma = model.schedule.sigma(low)
    return CriticalScale(sigma[: len(latents)], sigma[len(latents) :])


def _borne(model: GuidedModel, x: Tensor, prompt: Tensor, timestep: Tensor, steps: int, radius: float) -> Tensor:
    """Whether each row stays within the radius for all steps, [N]; rows that left are not evaluated again."""
    y, inside = x.clone(), torch.ones_like(prompt, dtype=torch.bool)
    signal, sigma = model.schedule.signal(timestep), model.schedule.sigma(timestep)
    for _ in range(steps):
        rows = inside.nonzero().squeeze(1)
        if not len(rows):
            break
        a, s = (f[rows].to(x).reshape(-1, *[1] * (x.ndim - 1)) for f in (signal, sigma))
        y[rows] = y[rows] - s * model.evaluate(a * y[rows], timestep[rows], prompt[rows])
        away = (y[rows] - x[rows]).flatten(1).norm(dim=1)
        if not bool(torch.isfinite(away).all()):
            raise FloatingPointError("the model's prediction is not finite; nothing can be measured on this model")
        inside[rows] = away <= radius * x[rows].flatten(1).norm(dim=1)
    return inside
