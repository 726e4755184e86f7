"""How well a model denoises given images under given captions: what every membership test is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..basin.trajectories import GuidedModel
from ..core import seeds as seed_table
from ..diffusion.sampling import draw_noise


@dataclass(frozen=True)
class LossPlan:
    """Where the loss is read: the middle of the noise, where a fine-tune knows its images from others.

    Attributes:
        timesteps: training timesteps.
        draws: noises at each of them, the same for every image and caption (common random numbers).

    Raises:
        ValueError: nothing to read, or a timestep outside 0 to 999.
    """

    timesteps: tuple[int, ...] = (400, 500, 600)
    draws: int = 2

    def __post_init__(self) -> None:
        if self.draws < 1 or not self.timesteps or not all(0 <= t <= 999 for t in self.timesteps):
            raise ValueError(f"LossPlan(timesteps={self.timesteps}, draws={self.draws}): expected 0..999, 1 or more")

    @property
    def evaluations(self) -> int:
        """Of the network, for one image under one caption."""
        return len(self.timesteps) * self.draws


PLAN = LossPlan()


def denoising_loss(model: GuidedModel, latents: Tensor, prompt: Tensor, plan: LossPlan = PLAN) -> Tensor:
    """Mean squared error of the predicted noise, averaged over the plan's timesteps and noises, [N].

    Args:
        model: with the captions.
        latents: clean, [N, ...].
        prompt: caption of each, [N].
        plan: at which noise.

    Source: Ho et al., arXiv 2006.11239, eq. 14; as a membership test, Yeom et al., arXiv 1709.01604 (loss threshold).
    """
    seeds = range(seed_table.MEMBERSHIP, seed_table.MEMBERSHIP + plan.draws)
    noise = draw_noise(seeds, latents.shape[1:]).to(latents)
    losses = [_loss(model, latents, prompt, timestep, eps) for timestep in plan.timesteps for eps in noise]
    return torch.stack(losses).mean(0)


def _loss(model: GuidedModel, latents: Tensor, prompt: Tensor, timestep: int, eps: Tensor) -> Tensor:
    now = torch.full_like(prompt, timestep)
    signal, noise = (float(factor(now[:1])) for factor in (model.schedule.signal, model.schedule.noise))
    predicted = model.evaluate(signal * latents + noise * eps, now, prompt)
    return (predicted - eps).flatten(1).square().mean(1)
