"""FineXtract: past the fine-tune, away from the base model, to where the fine-tune's own images lie.

Source: Wu et al., FineXtract, arXiv 2410.03039: eps = eps_base + w (eps_tuned(c) - eps_base) + k eps_base, where
eps_base is the base model's prediction without a prompt; samples that agree with each other are what is extracted, so
every caption is drawn several times.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..basin.trajectories import GuidedModel, Pairs
from ..diffusion.sampling import EMPTY, Denoiser
from ..guidance.core import Constant
from .attack import Attack
from .target import Attacker, sampled

PER_CAPTION = 4  # a cluster needs three that agree; the released code draws 500 images of a model
SETTINGS = ((5.0, 0.0), (3.0, -0.02))  # (w, k) of the released code: for a LoRA, and for DreamBooth


def extrapolated(eps_base: Tensor, eps_tuned: Tensor, weight: float, correction: float) -> Tensor:
    """eps_base + w (eps_tuned - eps_base) + k eps_base, [N, ...]."""
    return eps_base + weight * (eps_tuned - eps_base) + correction * eps_base


def extrapolating(tuned: GuidedModel, base: GuidedModel, weight: float, correction: float) -> Denoiser:
    """The denoiser of both models; the base is asked without a prompt."""

    def denoise(x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        nothing = prompt.new_full(prompt.shape, EMPTY)
        eps_base, eps_tuned = base.evaluate(x, timestep, nothing), tuned.evaluate(x, timestep, prompt)
        return extrapolated(eps_base, eps_tuned, weight, correction)

    return denoise


def sample_extrapolated(weight: float, correction: float, attacker: Attacker, pairs: Pairs) -> Tensor:
    """The training captions by extrapolation; without a base the target's own empty prompt stands for it."""
    tuned = attacker.guided(attacker.captions)
    denoise = extrapolating(tuned, attacker.base(), weight, correction)
    return sampled(denoise, tuned, pairs.prompt, pairs.noise, Constant(1.0))


EXTRAPOLATION = tuple(
    Attack(
        "extrapolation (FineXtract)",
        f"w = {weight:g}, k = {correction:g}, {PER_CAPTION} times the samples",
        "2410.03039",
        partial(sample_extrapolated, weight, correction),
        lambda steps: 2 * steps,
        quick=number == 0,
        weights=True,
        clustered=True,
        per_caption=PER_CAPTION,
    )
    for number, (weight, correction) in enumerate(SETTINGS)
)
