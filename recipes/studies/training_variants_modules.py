"""The trainings that `training_variants.py` compares: each takes the options of `FineTune` and gives one.

Source of the ambient variant: arXiv 2502.21278, its loss above a noise level, with one noisy image for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from basinguard.tinyworld.scenes import KINDS, TEXTURES
from basinguard.training.encoding import CaptionStates
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LoraOptions, LossOptions

AMBIENT_FROM = 700
PRIOR_SCALE = 3.0  # that of the study's own samples
EXIT_RANGE = 62  # timesteps below each: to the next one of the sampler's 16


class Denser(FineTune):
    """Timesteps are drawn by a density of their own."""

    density: Tensor

    def draw_timesteps(self, count: int) -> Tensor:
        """By the density, [count]."""
        return torch.multinomial(self.density, count, replacement=True)


class Ambient(FineTune):
    """Above a noise level the images are known only with that much noise on them, always the same for an image."""

    def denoising_loss(self, latents: Tensor, states: CaptionStates, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As of `FineTune`; rows above the level are held against the noisy image, in units of the usual target."""
        bars = self.forward_process.schedule.alphas_cumprod
        signal, spread = bars.sqrt()[timesteps].view(-1, 1, 1, 1), (1 - bars).sqrt()[timesteps].view(-1, 1, 1, 1)
        own_signal, own_spread = bars.sqrt()[AMBIENT_FROM], (1 - bars).sqrt()[AMBIENT_FROM]
        noisy_image = own_signal * latents + own_spread * torch.stack([fixed_noise(x) for x in latents])
        ratio = signal / own_signal
        added = (spread**2 - (ratio * own_spread) ** 2).clamp(min=0).sqrt()
        high = (timesteps > AMBIENT_FROM).view(-1, 1, 1, 1)
        noisy = torch.where(high, ratio * noisy_image + added * noise, signal * latents + spread * noise)
        predicted = self.unet(noisy, timesteps, **states.texts, return_dict=False)[0]
        clean = signal * noisy - spread * predicted  # the base predicts v
        gain = ratio * own_spread**2 / spread**2
        mean = own_signal * clean + gain * (noisy - signal * clean)
        unit = ((own_signal - gain * signal) * spread).clamp(min=1e-3)
        usual = predicted - self.forward_process.target(latents, noise, timesteps)
        errors = torch.where(high, ((mean - noisy_image) / unit).square().clamp(max=100), usual.square())
        return errors.mean()


def fixed_noise(latent: Tensor) -> Tensor:
    """Noise that belongs to an image."""
    seed = int(latent.abs().sum() * 1000) % 2**31
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def denser(density: Tensor, **options: Any) -> FineTune:
    """A fine-tune whose timesteps have this density, [1000]."""
    module = Denser(**options)
    module.density = density
    return module


def within(begin: int, end: int, weight: float) -> Tensor:
    """A density of `weight` in a range and 1 elsewhere, [1000]."""
    density = torch.ones(1000)
    density[begin:end] = weight
    return density


def beside_exits(exits: Mapping[int, int], least: float = 0.25) -> Tensor:
    """A density of 1 where no copy was decided, `least` where most were, and in proportion between, [1000]."""
    density = torch.ones(1000)
    for timestep, count in exits.items():
        density[timestep - EXIT_RANGE : timestep + 1] = 1 - (1 - least) * count / max(exits.values())
    return density


def with_prior(captions: tuple[str, ...] | None, **options: Any) -> FineTune:
    """A fine-tune beside the base model's own pictures of these captions."""
    loss = LossOptions(prior_weight=1.0, prior_captions=captions, prior_scale=PRIOR_SCALE)
    return FineTune(loss=loss, **options)


SCENES = tuple(f"a {texture} {kind}" for texture in TEXTURES for kind in KINDS)[::9]
Variant = Callable[..., FineTune]
VARIANTS: Mapping[str, Variant] = {
    "uniform": FineTune,
    "quarter above 600": partial(denser, within(600, 1000, 0.25)),
    "tenth above 600": partial(denser, within(600, 1000, 0.1)),
    "quarter above 800": partial(denser, within(800, 1000, 0.25)),
    "none above 800": partial(denser, within(800, 1000, 0.0)),
    "quarter above 400": partial(denser, within(400, 1000, 0.25)),
    "quarter from 500 to 900": partial(denser, within(500, 900, 0.25)),
    "quarter below 400": partial(denser, within(0, 400, 0.25)),
    "unconditional held": partial(FineTune, loss=LossOptions(keep_unconditional=1.0)),
    "ambient above 700": Ambient,
    "base model's pictures, generic": partial(with_prior, None),
    "base model's pictures, its own scenes": partial(with_prior, SCENES),
    "half the rank at T": partial(FineTune, lora=LoraOptions(rank_at_noise=0.5)),
    "one channel at T": partial(FineTune, lora=LoraOptions(rank_at_noise=1 / 16)),
}
