"""Han et al., adjust the initial noise so that the prompt pulls less, all of it at once or sample by sample.

Source: Han et al., "Adjusting Initial Noise to Mitigate Memorization in Text-to-Image Diffusion Models", NeurIPS 2025,
arXiv 2510.08625; hygnhan/init_noise_diffusion_memorization. With d(x) = eps(x, e) - eps(x, "") at the first timestep:

batch-wise, M = 2 times: x <- x - gamma (d(x + rho d / |d|) - d(x)), gamma 0.7, rho 50; guidance is off until t = 900.
per sample: AdamW on x until |d(x)| is at most a target (0.9 on SD 1.4), learning rate 0.01.

The intensity is the transition for the first (the paper sweeps 900 to 840 after adjusting) and, for the second, the
share of the sample's own first norm that is left: absolute targets belong to one model at one size. rho, a length in
latents of 4 x 64 x 64, is scaled by the square root of the latents' size.

Differences from the released code: d is in epsilon space for v-prediction too; at most 20 iterations at rate 0.05
instead of 1,000 at 0.01, so that a mild target costs tens of evaluations, not thousands; noise changes for each
(prompt, seed) in both.

Cost: batch-wise 8 further evaluations of each sample; per sample up to 40, with gradients and the memory of a backward
pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.sampling import EMPTY, Denoiser
from ..guidance.core import SwitchAt
from .base import Mitigation
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed

PAPER = "Han et al., NeurIPS 2025, arXiv 2510.08625"
GAMMA, RHO, TIMES = 0.7, 50 / 128, 2  # rho as a share of the noise's own length
RATE, ITERATIONS = 0.05, 20


def pull(denoise: Denoiser, x: Tensor, timestep: Tensor) -> Tensor:
    """d(x): the difference that the prompt makes at the first timestep, in epsilon space, [B, ...]."""
    rows = torch.arange(len(x))
    t = timestep.expand(len(x))
    return denoise(x, t, rows) - denoise(x, t, torch.full_like(rows, EMPTY))


def adjust_together(testbed: Testbed, batch: Batch) -> Tensor:
    """Noise after M steps of the sharpness-aware update, [B, C, h, w]."""
    denoise, x, first = _start(testbed, batch)
    for _ in range(TIMES):
        d = pull(denoise, x, first)
        length = d.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
        there = pull(denoise, x + RHO * d[0].numel() ** 0.5 * d / length, first)
        x = x - GAMMA * (there - d)
    return x


def adjust_each(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    """Noise whose pull is at most `share` of what it was, where the iterations suffice, [B, C, h, w]."""
    denoise, x, first = _start(testbed, batch)
    x = x.clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([x], lr=RATE)
    target: Tensor | None = None
    done = torch.zeros(len(batch), dtype=torch.bool)
    adjusted = x.detach().clone()
    with torch.enable_grad():
        for _ in range(ITERATIONS):
            length = pull(denoise, x, first).flatten(1).norm(dim=1)
            target = share * length.detach() if target is None else target
            done |= length <= target
            adjusted = torch.where(done[:, None, None, None], adjusted, x.detach())
            if bool(done.all()):
                break
            optimiser.zero_grad()
            (length * ~done).sum().backward()
            optimiser.step()
            adjusted = torch.where(done[:, None, None, None], adjusted, x.detach())
    return adjusted


def _start(testbed: Testbed, batch: Batch) -> tuple[Denoiser, Tensor, Tensor]:
    first = testbed.model.schedule.grid(testbed.timesteps)[:1]
    return testbed.model.denoiser(list(batch.prompts)), testbed.noise(batch), first


def _together(testbed: Testbed, batch: Batch, transition: float) -> Tensor:
    return sample_pipeline(testbed, batch, SwitchAt(transition, 0.0, None), noise=adjust_together(testbed, batch))


def _each(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    return sample_pipeline(testbed, batch, noise=adjust_each(testbed, batch, share))


BATCHWISE = Mitigation(
    "han-batch",
    PAPER + ", section 4.1",
    "transition, timestep",
    (900.0, 880.0, 840.0, 750.0, 650.0),
    880.0,
    _together,
)
PERSAMPLE = Mitigation(
    "han-sample", PAPER + ", section 4.2", "share of the first pull left", (0.9, 0.75, 0.6, 0.45, 0.3), 0.6, _each
)
