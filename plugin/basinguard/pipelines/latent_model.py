"""A pipeline of Stable Diffusion or XL in this package's terms: every parametrisation becomes epsilon here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ..diffusion.batching import Batched
from ..diffusion.noise_schedule import NoiseSchedule, to_epsilon
from ..diffusion.sampling import EMPTY, Denoiser
from .text_conditioning import TextConditioning

Place = tuple[torch.device, torch.dtype]  # where and in what precision the network computes
DECODE_PIXELS = 32 * 64 * 64  # decoded at once: 32 images of 64 px, one of 512 px (0.75 GB in float32)


def smaller_side(pipe: StableDiffusionPipeline, images: Tensor) -> int | None:
    """The side that a model is measured at that trains on smaller images, [N, 3, H, W], than it draws; else None."""
    height, width = images.shape[-2:]
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return width if height == width < own and width % pipe.vae_scale_factor == 0 else None


class LatentModel:
    """What the guard needs of a text-to-image pipeline: schedule, latent shape, denoiser, encoder and decoder.

    Args:
        pipe: a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`; its modules are used as they stand, so a model
            in training is measured as it is now.
        dtype: precision of the measurements; None keeps the modules' own. `torch.bfloat16` halves their time on
            most machines and goes through autocast, so weights are never converted.
        anchor: take the unconditional branch from the base model, with all adapters off (needs a LoRA).
        resolution: side of the images to draw, in pixels; the model's own when not given.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        dtype: torch.dtype | None = None,
        anchor: bool = False,
        resolution: int | None = None,
    ) -> None:
        kind = pipe.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {kind!r} is not supported; expected 'epsilon' or 'v_prediction'")
        if resolution is not None and (resolution < 1 or resolution % pipe.vae_scale_factor):
            raise ValueError(f"resolution={resolution}: expected a multiple of {pipe.vae_scale_factor} pixels")
        if anchor and not _has_adapter(pipe.unet):
            raise ValueError("anchor=True takes the unconditional branch from the base model, which needs a LoRA")
        self.pipe, self.dtype, self.anchor, self.prediction_type = pipe, dtype, anchor, kind
        self._side = resolution // pipe.vae_scale_factor if resolution else pipe.unet.config.sample_size
        self.schedule = NoiseSchedule(pipe.scheduler.alphas_cumprod.double().cpu())

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one sample's latents."""
        return self.pipe.unet.config.in_channels, self._side, self._side

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self.latent_shape[1] * self.pipe.vae_scale_factor

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """The denoiser whose prompt k is `prompts[k]`; texts are encoded once, here."""
        place = self._device, self.pipe.unet.dtype  # asked once: diffusers looks at every module for either
        texts = TextConditioning.of(self.pipe, prompts, self.resolution, place[1])

        def denoise(x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
            return self._eps(x, timestep, prompt, texts, place)

        return denoise

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], [B, 3, H, W], on the CPU in float32."""
        rows = max(1, DECODE_PIXELS // (latents.shape[-1] * self.pipe.vae_scale_factor) ** 2)
        return Batched(self._decoded, rows)(latents / self.pipe.vae.config.scaling_factor)

    def _decoded(self, latents: Tensor) -> Tensor:
        device = self._device
        with self._precision(device):
            pixels = self.pipe.vae.decode(latents.to(device, self.pipe.vae.dtype)).sample
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [0, 1], [B, C, h, w]: the mean of the encoder's distribution, scaled."""
        x = (images * 2 - 1).to(self._device, self.pipe.vae.dtype)
        return self.pipe.vae.encode(x).latent_dist.mean.float() * self.pipe.vae.config.scaling_factor

    @property
    def _device(self) -> torch.device:
        return self.pipe.unet.device

    @contextmanager
    def _precision(self, device: torch.device) -> Iterator[None]:
        enabled = self.dtype not in (None, torch.float32)
        with torch.autocast(device.type, self.dtype, enabled=True) if enabled else nullcontext():
            yield

    def _eps(self, x: Tensor, timestep: Tensor, prompt: Tensor, texts: TextConditioning, place: Place) -> Tensor:
        cond = prompt != EMPTY
        if not self.anchor or bool(cond.all()):
            output = self._forward(x, timestep, texts.arguments(prompt), place)
        else:
            output = torch.empty_like(x)
            with _adapters_off(self.pipe.unet):
                output[~cond] = self._forward(x[~cond], timestep[~cond], texts.arguments(prompt[~cond]), place)
            if bool(cond.any()):
                output[cond] = self._forward(x[cond], timestep[cond], texts.arguments(prompt[cond]), place)
        return to_epsilon(
            self.prediction_type, output, x, self.schedule.signal(timestep), self.schedule.noise(timestep)
        )

    def _forward(self, x: Tensor, timestep: Tensor, text: Mapping[str, Any], place: Place) -> Tensor:
        with self._precision(place[0]):
            out = self.pipe.unet(x.to(*place), timestep.to(place[0]), **text).sample
        return out.to(x.device, x.dtype)


def _has_adapter(unet: Any) -> bool:
    return bool(getattr(unet, "peft_config", None))


@contextmanager
def _adapters_off(unet: Any) -> Iterator[None]:
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()
