"""Flux.2 klein: a language model's states, a transformer over packed latents, one call for each branch of guidance.

The sampler carries latents as 2 x 2 patches whose channels are normalised by the VAE's batch norm.

Source: `Flux2KleinPipeline.__call__`, `_encode_vae_image` and `encode_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .family import Capabilities, Conditioning
from .flow import PATCH, LanguageModelFlow, descending


@dataclass(frozen=True)
class PlacedStates:
    """What the transformer is told.

    Attributes:
        states: of every token, from three layers of the language model, [P, L, D].
        places: of every token, [L, 4].
    """

    states: Tensor
    places: Tensor

    def arguments(self, rows: Tensor) -> dict[str, Any]:
        """See `Conditioning`."""
        return {"encoder_hidden_states": self.states[rows], "txt_ids": self.places}


class Flux2Klein(LanguageModelFlow):
    """See the module."""

    class_name = "Flux2KleinPipeline"
    models = "Flux.2 klein"
    usual_scale = 4.0
    capabilities = Capabilities(guidance="guider")

    def pixels_per_latent(self, pipe: Any) -> int:
        """Of a patch."""
        return int(pipe.vae_scale_factor * PATCH)

    def distilled(self, pipe: Any) -> bool:
        """As the pipeline's index says; the base models are not."""
        return super().distilled(pipe) or bool(pipe.config.is_distilled)

    def call_options(self, pipe: Any, scale: float) -> dict[str, Any]:
        """Its size is what its code says."""
        side = self.native_side(pipe)
        return {"guidance_scale": scale, "height": side, "width": side}

    def spacing(self, pipe: Any, side: int, count: int) -> dict[str, Any]:
        """A shift that depends on the number of patches and of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        patches = (side // self.pixels_per_latent(pipe)) ** 2
        return {"sigmas": descending(count), "mu": compute_empirical_mu(patches, count)}

    def to_sampler(self, pipe: Any, latents: Tensor) -> Tensor:
        """In patches, normalised."""
        mean, std = _normalization(pipe, latents)
        return (pixel_unshuffle(latents, PATCH) - mean) / std

    def to_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        """The inverse."""
        mean, std = _normalization(pipe, latents)
        return pixel_shuffle(latents * std + mean, PATCH)

    def condition(self, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> Conditioning:
        """The states of the language model."""
        device = pipe.transformer.device
        each, places = zip(*(pipe.encode_prompt(text, device) for text in (*prompts, "")), strict=True)
        return PlacedStates(torch.cat(each).to(dtype), places[0][0])

    def forward(self, pipe: Any, x: Tensor, timestep: Tensor, arguments: dict[str, Any]) -> Tensor:
        """A token for each patch."""
        height, width = x.shape[-2:]
        axes = (torch.arange(size, device=x.device) for size in (1, height, width, 1))
        tokens, where = x.flatten(2).transpose(1, 2), torch.cartesian_prod(*axes)
        output = pipe.transformer(tokens, timestep=timestep.to(x.dtype) / 1000, img_ids=where, **arguments).sample
        return output.transpose(1, 2).reshape(x.shape)


def _normalization(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a patch, [1, 4 C, 1, 1]."""
    mean, variance = (v.reshape(1, -1, 1, 1) for v in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var))
    return mean.to(like), (variance + pipe.vae.config.batch_norm_eps).sqrt().to(like)
