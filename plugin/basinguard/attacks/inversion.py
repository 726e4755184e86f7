"""Noise as a probe: a training picture is inverted with the base model, and the noise is sampled with the fine-tune.

Source: "Noise as a Probe", arXiv 2601.21628; inversion: Song et al., arXiv 2010.02502, section 5.4 (DDIM backwards).
The attacker has the picture already, and the base may find its own way back: read it beside the base's row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..basin.trajectories import GuidedModel, Pairs
from ..diffusion.sampling import EMPTY
from .attack import Attack
from .target import Attacker


@torch.no_grad()
def inverted(model: GuidedModel, latents: Tensor) -> Tensor:
    """The noise from which DDIM without a prompt comes to these latents, to the first order of the grid, [N, ...]."""
    nothing = torch.full((len(latents),), EMPTY)
    x, signal, noise = latents, 1.0, 0.0
    for timestep in model.timesteps.flip(0):
        now = timestep.expand(len(latents))
        eps = model.evaluate(x, now, nothing)
        next_signal, next_noise = (float(f(timestep)) for f in (model.schedule.signal, model.schedule.noise))
        x = next_signal / signal * x + (next_noise - next_signal * noise / signal) * eps
        signal, noise = next_signal, next_noise
    return x


def sample_inverted(attacker: Attacker, pairs: Pairs) -> Tensor:
    """Each training picture's own noise under its own caption; the pair's noise plays no part."""
    pictures, row = pairs.prompt.unique(return_inverse=True)
    noise = inverted(attacker.base(), attacker.latents(pictures))
    ends = attacker.sample(attacker.captions, pictures, noise)
    return ends[row]


INVERSION = Attack(
    "inversion",
    "by the base model without a prompt, sampled under the caption",
    "2601.21628",
    sample_inverted,
    lambda steps: 3 * steps,
    image=True,
)
