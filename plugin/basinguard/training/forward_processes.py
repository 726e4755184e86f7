"""What is done to latents in training and what the denoiser is to predict: a diffusion, or a rectified flow."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..pipelines.forward_process import target, training_schedule
from .finetune_options import LossOptions
from .objective import HIGH_NOISE, min_snr_weights, random_timesteps

TIMESTEPS = 1000  # of a flow: sigma = 1


class ForwardProcess(Protocol):
    """Draws timesteps, adds noise, and knows what is to be predicted of it.

    Attributes:
        schedule: the scheduler that says how much noise a timestep stands for.
    """

    schedule: Any

    def draw_timesteps(self, count: int, device: torch.device) -> Tensor:
        """Training timesteps of a batch, [count], in 0..1000."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents [B, C, h, w] at timesteps [B]."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser is to predict, [B, C, h, w]."""

    def weights(self, timesteps: Tensor) -> Tensor | None:
        """How much each row's loss counts, [B]; None: all the same."""


class Diffusion:
    """Noise or velocity, on the sampler's own noise schedule."""

    def __init__(self, scheduler: Any, options: LossOptions) -> None:
        self.schedule, self.options = training_schedule(scheduler), options

    def draw_timesteps(self, count: int, device: torch.device) -> Tensor:
        """Uniform but for `high_noise`, int64."""
        return random_timesteps(self.schedule, count, device, self.options.high_noise)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See `ForwardProcess`."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See `pipelines.forward_process.target`."""
        return target(self.schedule, latents, noise, timesteps)

    def weights(self, timesteps: Tensor) -> Tensor | None:
        """Min-SNR's, if asked for."""
        gamma = self.options.min_snr_gamma
        return None if gamma is None else min_snr_weights(self.schedule, timesteps, gamma)


class RectifiedFlow:
    """Velocity eps - x_0 on a straight way: x_t = (1 - sigma) x_0 + sigma eps, sigma = t / 1000.

    Args:
        scheduler: diffusers' flow matcher; its shift bends the timesteps towards high noise.
        options: of the loss.

    Raises:
        ValueError: Min-SNR is asked for.

    Source: Esser et al., arXiv 2403.03206, section 2, eq. 19 (timesteps) and eq. 23 (shift); diffusers'
    train_dreambooth_sd3.py draws them so too, on a grid of 1000.
    """

    def __init__(self, scheduler: Any, options: LossOptions) -> None:
        require_flow_loss(options)
        self.schedule, self.options = scheduler, options
        config = scheduler.config
        self.shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))

    def draw_timesteps(self, count: int, device: torch.device) -> Tensor:
        """Logit-normal with location 0 and scale 1, then shifted, [count] in float32.

        Those from `HIGH_NOISE` on stay with probability `high_noise` and are drawn again otherwise.
        """
        drawn, pending = torch.empty(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
        while bool(pending.any()):
            drawn[pending] = self._logit_normal(int(pending.sum()), device)
            if self.options.high_noise == 1:
                break
            dropped = torch.rand(count, device=device) >= self.options.high_noise
            pending = pending & dropped & (drawn >= HIGH_NOISE * TIMESTEPS)
        return drawn

    def _logit_normal(self, count: int, device: torch.device) -> Tensor:
        sigma = torch.sigmoid(torch.randn(count, device=device))
        return TIMESTEPS * self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See the class."""
        sigma = (timesteps / TIMESTEPS).to(latents).reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity, the same at every timestep."""
        return noise - latents

    def weights(self, timesteps: Tensor) -> None:
        """None: how often a timestep is drawn is its weight."""


def require_flow_loss(options: LossOptions) -> None:
    """Refuses what makes no sense with a rectified flow.

    Raises:
        ValueError: Min-SNR is asked for.
    """
    if options.min_snr_gamma is not None:
        raise ValueError(
            f"loss.min_snr_gamma={options.min_snr_gamma}: a rectified flow weighs its timesteps by how often it draws "
            "them; leave it out (null)"
        )


def forward_process(prediction_type: str, scheduler: Any, options: LossOptions) -> ForwardProcess:
    """The one that a denoiser was trained by.

    Raises:
        ValueError: an option that makes no sense with it.
    """
    kind = RectifiedFlow if prediction_type == "flow_prediction" else Diffusion
    return kind(scheduler, options)
