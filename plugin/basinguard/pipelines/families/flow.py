"""What the families that were trained as rectified flows share: their noise schedule, on the pipeline's own grid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...diffusion.noise_schedule import FlowSchedule
from .family import Family

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
PATCH = 2  # of latents along a side, that a token of those led by a language model holds
FOLLOWED = {"num_train_timesteps": 1000, "stochastic_sampling": False, "invert_sigmas": False}


@dataclass(frozen=True)
class PipelineFlow(FlowSchedule):
    """A rectified flow whose grid is a pipeline's own, shifted as that shifts it.

    Attributes:
        timesteps: of a number of sampling steps: descending, [N].
    """

    timesteps: Callable[[int], Tensor] | None = None

    def grid(self, count: int) -> Tensor:
        """`count` timesteps from the noisiest downwards, [count], float64.

        Raises:
            ValueError: see `NoiseSchedule.grid`.
        """
        bent = super().grid(count)
        return bent if self.timesteps is None else self.timesteps(count).double().cpu()


class FlowFamily(Family):
    """A family of rectified flows."""

    denoiser_name = "transformer"

    def prediction_type(self, pipe: Any) -> str:
        """The velocity; what else a scheduler may say of itself is refused by `schedule`."""
        return "flow_prediction"

    def schedule(self, pipe: Any, side: int) -> FlowSchedule:
        """See `Family`; a flow's grid depends on the size of the image where the scheduler shifts dynamically."""
        require_euler(pipe.scheduler)
        return PipelineFlow(timesteps=partial(self.timesteps, pipe, side))

    def timesteps(self, pipe: Any, side: int, count: int) -> Tensor:
        """The timesteps of a call of the pipeline, [count]."""
        scheduler = deepcopy(pipe.scheduler)  # the pipeline's own may be in the middle of a call
        scheduler.set_timesteps(count, **self.spacing(pipe, side, count))
        timesteps: Tensor = scheduler.timesteps
        return timesteps

    def to_sampler(self, pipe: Any, latents: Tensor) -> Tensor:
        """Shifted and scaled."""
        return (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor

    def to_vae(self, pipe: Any, latents: Tensor) -> Tensor:
        """The inverse."""
        return latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor

    @abstractmethod
    def spacing(self, pipe: Any, side: int, count: int) -> dict[str, Any]:
        """What the pipeline tells `set_timesteps` beside the number of steps: its `sigmas` and `mu`, where it does."""


class LanguageModelFlow(FlowFamily):
    """A flow whose text encoder is a language model, which is never fine-tuned with it; its patches are 2 x 2."""

    encoder_names = ("text_encoder",)

    def tuned_parts(self, pipe: Any) -> tuple[str, ...]:
        """The transformer alone."""
        return (self.denoiser_name,)

    def native_side(self, pipe: Any) -> int:
        """As the VAE's configuration says: such pipelines have the same 1024 in their code."""
        return int(pipe.vae.config.sample_size)


def require_euler(scheduler: Any) -> None:
    """Refuses a scheduler whose sampler is not Euler's method on a flow of 1000 timesteps.

    Raises:
        ValueError: names it, or its settings.
    """
    kind = type(scheduler).__name__
    if kind != SCHEDULER:
        raise ValueError(f"{kind} cannot be followed in a flow model; expected {SCHEDULER}")
    other = {k: scheduler.config.get(k, v) for k, v in FOLLOWED.items() if scheduler.config.get(k, v) != v}
    if other:
        raise ValueError(f"{SCHEDULER} with {other} cannot be followed; expected {FOLLOWED}")


def descending(count: int) -> list[float]:
    """Evenly spaced sigmas from 1 to 1 / count, before any shift, as most pipelines of flows ask for."""
    return [float(sigma) for sigma in torch.linspace(1.0, 1 / count, count)]


def dynamic_shift(config: Any, patches: int, *, max_shift: float = 1.15) -> float:
    """mu of the dynamic shift, linear in the number of patches.

    Args:
        config: of the scheduler.
        patches: positions that the transformer attends to.
        max_shift: the pipeline's own, for a scheduler that says none.

    Source: `calculate_shift` in diffusers.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (high - low) / (many - few)
    return float(patches * slope + low - slope * few)
