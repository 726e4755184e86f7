"""The training loss: how much each timestep, row and caption counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from ..guidance.core import epsilon_factor, gap

HIGH_NOISE = 0.6  # of all timesteps: from here on little of an image is left beside the noise


def min_snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight of each timestep's loss, [B]: min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v.

    Both say the same about predicted images: weight min(SNR, gamma) on the error of x0.

    Args:
        schedule: its prediction type decides the form.
        timesteps: training timesteps, [B].
        gamma: at which signal-to-noise ratio weights stop growing; 5 in the paper.

    Source: Hang et al., arXiv 2303.09556, section 3.4 and appendix.
    """
    signal = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = signal / (1 - signal)  # diffusers' `compute_snr` takes roots first and differs in the last bit
    if schedule.config.prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)  # zero terminal SNR: gamma / 0 is clamped, 0 / 0 would be NaN
    return snr.clamp(max=gamma) / (snr + 1)


def row_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row in float32, [B]."""
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error in float32, a scalar; each row counts by its weight ([B], None: all 1)."""
    error = F.mse_loss(prediction.float(), target.float(), reduction="none")
    if weights is None:
        return error.mean()
    return (error.mean(dim=tuple(range(1, error.ndim))) * weights).mean()


def epsilon_gaps(schedule: DDPMScheduler, unconditional: Tensor, conditional: Tensor, timesteps: Tensor) -> Tensor:
    """Gap of each row, [B], in epsilon space, of raw predictions."""
    gaps, factor = gap(unconditional, conditional), epsilon_factor(schedule)
    return gaps * torch.tensor([factor(timestep) for timestep in timesteps.tolist()]).to(gaps)


def random_timesteps(schedule: DDPMScheduler, count: int, device: torch.device, high_noise: float = 1.0) -> Tensor:
    """Training timesteps, [count]: uniform, those from `HIGH_NOISE` on `high_noise` times as often as those below.

    Source: the density of timesteps as a knob of memorization, arXiv 2602.17846 and 2601.21348 (they disagree on its
    form; this one was chosen by `recipes/studies/training_variants.py`).
    """
    most = schedule.config.num_train_timesteps
    if high_noise == 1:
        return torch.randint(0, most, (count,), device=device)
    density = torch.ones(most, device=device)
    density[round(HIGH_NOISE * most) :] = high_noise
    return torch.multinomial(density, count, replacement=True)


def drop_captions(captions: list[str], share: float) -> list[str]:
    """The captions, each replaced by "" with probability `share`; draws from torch's generator, if it is not 0.

    Source: Ho and Salimans, arXiv 2207.12598, section 3.2.
    """
    if share == 0:
        return captions
    return ["" if drawn < share else text for text, drawn in zip(captions, torch.rand(len(captions)), strict=True)]
