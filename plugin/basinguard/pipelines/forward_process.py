"""What a denoiser is trained to predict: the noise, or the velocity."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMScheduler
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


def training_schedule(sampler: Any) -> DDPMScheduler:
    """The forward process that belongs to a sampler: same betas, same prediction type.

    Samplers such as PNDM know no velocity, so training always uses diffusers' DDPM.

    Raises:
        ValueError: the sampler's prediction type is neither epsilon nor v_prediction.
    """
    schedule = DDPMScheduler.from_config(sampler.config)
    if schedule.config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction type {schedule.config.prediction_type!r} of the scheduler; accepted: {PREDICTION_TYPES}"
        )
    return schedule


def target(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict, [B, ...]: the noise, or the velocity.

    Source: Ho et al., arXiv 2006.11239, eq. 14; Salimans and Ho, arXiv 2202.00512, appendix D.
    """
    if schedule.config.prediction_type == "epsilon":
        return noise
    return schedule.get_velocity(latents, noise, timesteps)
