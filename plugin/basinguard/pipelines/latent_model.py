"""A pipeline of any family in this package's terms: every parametrisation becomes epsilon here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..diffusion.batching import Batched
from ..diffusion.noise_schedule import to_epsilon
from ..diffusion.sampling import EMPTY, Denoiser
from .families.family import Conditioning
from .families.registry import family_of

Place = tuple[torch.device, torch.dtype]  # where and in what precision the network computes
DECODE_PIXELS = 32 * 64 * 64  # decoded at once: 32 images of 64 px, one of 512 px (0.75 GB in float32)


def smaller_side(pipe: Any, images: Tensor) -> int | None:
    """The side that a model is measured at that trains on smaller images, [N, 3, H, W], than it draws; else None."""
    height, width = images.shape[-2:]
    family = family_of(pipe)
    fits = width % family.side_unit(pipe) == 0
    return width if height == width < family.native_side(pipe) and fits else None


class LatentModel:
    """What the guard needs of a text-to-image pipeline: schedule, latent shape, denoiser, encoder and decoder.

    Args:
        pipe: of one of `families.registry.FAMILIES`; its modules are used as they stand, so a model in training is
            measured as it is now.
        dtype: precision of the measurements; None keeps the modules' own. `torch.bfloat16` halves their time on
            most machines and goes through autocast, so weights are never converted.
        anchor: take the unconditional branch from the base model, with all adapters off (needs a LoRA).
        resolution: side of the images to draw, in pixels; the model's own when not given.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        dtype: torch.dtype | None = None,
        anchor: bool = False,
        resolution: int | None = None,
    ) -> None:
        family = family_of(pipe)
        kind, unit = family.prediction_type(pipe), family.side_unit(pipe)
        if resolution is not None and (resolution < 1 or resolution % unit):
            raise ValueError(f"resolution={resolution}: expected a multiple of {unit} pixels")
        if anchor and not _has_adapter(family.denoiser(pipe)):
            raise ValueError("anchor=True takes the unconditional branch from the base model, which needs a LoRA")
        self.pipe, self.dtype, self.anchor, self.prediction_type = pipe, dtype, anchor, kind
        self.family, self._side = family, resolution or family.native_side(pipe)
        self.schedule = family.schedule(pipe, self._side)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one sample's latents."""
        return self.family.latent_shape(self.pipe, self._side)

    @property
    def resolution(self) -> int:
        """Side of the images, in pixels."""
        return self._side

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """The denoiser whose prompt k is `prompts[k]`; texts are encoded once, here."""
        network = self.family.denoiser(self.pipe)
        place = network.device, network.dtype  # asked once: diffusers looks at every module for either
        texts = self.family.condition(self.pipe, prompts, self._side, place[1])

        def denoise(x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
            return self._eps(x, timestep, prompt, texts, place)

        return denoise

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], [B, 3, H, W], on the CPU in float32."""
        rows = max(1, DECODE_PIXELS // (latents.shape[-1] * self.family.pixels_per_latent(self.pipe)) ** 2)
        return Batched(self._decoded, rows)(latents)

    def _decoded(self, latents: Tensor) -> Tensor:
        with self._precision(self._device):
            pixels = self.family.decode(self.pipe, latents)
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images in [0, 1], [B, C, h, w]: the mean of the encoder's distribution, scaled."""
        return self.family.encode(self.pipe, images)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.family.denoiser(self.pipe).device
        return device

    @contextmanager
    def _precision(self, device: torch.device) -> Iterator[None]:
        enabled = self.dtype not in (None, torch.float32)
        with torch.autocast(device.type, self.dtype, enabled=True) if enabled else nullcontext():
            yield

    def _eps(self, x: Tensor, timestep: Tensor, prompt: Tensor, texts: Conditioning, place: Place) -> Tensor:
        cond = prompt != EMPTY
        if not self.anchor or bool(cond.all()):
            output = self._forward(x, timestep, texts.arguments(prompt), place)
        else:
            output = torch.empty_like(x)
            with _adapters_off(self.family.denoiser(self.pipe)):
                output[~cond] = self._forward(x[~cond], timestep[~cond], texts.arguments(prompt[~cond]), place)
            if bool(cond.any()):
                output[cond] = self._forward(x[cond], timestep[cond], texts.arguments(prompt[cond]), place)
        return to_epsilon(
            self.prediction_type, output, x, self.schedule.signal(timestep), self.schedule.noise(timestep)
        )

    def _forward(self, x: Tensor, timestep: Tensor, text: dict[str, Any], place: Place) -> Tensor:
        with self._precision(place[0]):
            out = self.family.forward(self.pipe, x.to(*place), timestep.to(place[0]), text)
        return out.to(x.device, x.dtype)


def _has_adapter(network: Any) -> bool:
    return bool(getattr(network, "peft_config", None))


@contextmanager
def _adapters_off(network: Any) -> Iterator[None]:
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()
