"""A text-to-image model, as everything that measures or samples it needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .noise_schedule import NoiseSchedule
from .sampling import Denoiser


class Model(Protocol):
    """A text-to-image model as the guard sees it; `pipelines.latent_model.LatentModel` is one.

    One that also has `encode(images [B, 3, H, W] in [0, 1]) -> latents` lets probes stop branches early and measure
    critical scales.
    """

    schedule: NoiseSchedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one sample's latents."""
        ...

    def denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """A denoiser whose prompt k is `prompts[k]`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        ...
