"""What does a network predict, noise or velocity? Judged by its own output, not by a configuration that may be wrong.

The output is compared with both targets on a noisy picture that we made ourselves. Where there is almost only noise the
two have nothing in common: a network that predicts noise returns its input there, one that predicts velocity does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..core import seeds
from .families.registry import family_of
from .forward_process import target, training_schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TIMESTEPS = (900, 600, 300)
EPSILON_EXPLAINS = 0.8  # of the noise at the first timestep; the picture hides no more than a tenth of it there
VELOCITY_EXPLAINS = 0.5  # of the velocity, over all timesteps; the same network then explains less noise than this
LATENT_SIDE = 32


@dataclass(frozen=True)
class PredictionEvidence:
    """Share of each target's energy that a network's output explains; 1 is perfect, 0 what silence would do.

    Attributes:
        noise: at the noisiest timestep, for a network that predicts epsilon.
        velocity: over all timesteps, for a network that predicts v.
    """

    noise: float
    velocity: float

    @property
    def prediction_type(self) -> str | None:
        """What the network predicts; None if it explains neither (an untrained one).

        Example:
            >>> PredictionEvidence(noise=0.98, velocity=0.4).prediction_type
            'epsilon'
        """
        if self.noise >= EPSILON_EXPLAINS:
            return "epsilon"
        return "v_prediction" if self.noise < VELOCITY_EXPLAINS <= self.velocity else None


@torch.no_grad()
def evidence(pipe: DiffusionPipeline) -> PredictionEvidence:
    """Measured in one evaluation of the UNet: three rows of 32 x 32 latents (0.6 TFLOP with Stable Diffusion 2.1).

    Args:
        pipe: of a family with a UNet; its scheduler's prediction type plays no part.
    """
    latents = _picture(pipe).expand(len(TIMESTEPS), -1, -1, -1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seeds.PREDICTION_TYPE))
    timesteps, unet, family = torch.tensor(TIMESTEPS), pipe.unet, family_of(pipe)
    states = {k: v.to(unet.dtype) for k, v in family.text_states(pipe, [""] * len(TIMESTEPS)).items()}
    side = LATENT_SIDE * family.pixels_per_latent(pipe)
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(TIMESTEPS), device=unet.device)
    schedule = DDPMScheduler.from_config(training_schedule(pipe.scheduler).config, prediction_type="v_prediction")
    noisy = schedule.add_noise(latents, noise, timesteps).to(unet.device, unet.dtype)
    output = family.forward(pipe, noisy, timesteps.to(unet.device), family.arguments(states, sizes)).float().cpu()
    velocity = target(schedule, latents, noise, timesteps)
    return PredictionEvidence(_explained(output[:1], noise[:1]), _explained(output, velocity))


def _explained(output: Tensor, truth: Tensor) -> float:
    return 1 - float((output - truth).square().mean() / truth.square().mean())


def require_prediction_type(pipe: DiffusionPipeline, base: str) -> None:
    """Refuses a pipeline whose scheduler takes the network's output for what it is not.

    Raises:
        ValueError: says what the network predicts, what its scheduler says, and what to change.
    """
    configured = family_of(pipe).prediction_type(pipe)
    if configured == "flow_prediction":  # of every pipeline of these families
        return
    measured = evidence(pipe).prediction_type
    if measured is not None and measured != configured:
        raise ValueError(
            f"base {base!r}: its scheduler says {configured}, but its network predicts {measured} (measured on one "
            f'noisy picture); set "prediction_type": "{measured}" in scheduler/scheduler_config.json, or fetch it again'
        )


@torch.no_grad()
def _picture(pipe: DiffusionPipeline) -> Tensor:
    """Scaled latents of a plain grey picture, [1, 4, 32, 32] in float32: every model knows such areas."""
    side = LATENT_SIDE * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    grey = torch.zeros(1, 3, side, side, dtype=pipe.vae.dtype, device=pipe.vae.device)
    return pipe.vae.encode(grey).latent_dist.mean.float().cpu() * pipe.vae.config.scaling_factor
