"""Z-Image: a language model's states, a transformer over lists that counts time upwards and returns x_0 - eps.

Its pipeline guides by `cond + g * (cond - uncond)`, so its `guidance_scale` is g = scale - 1 here.

Source: `ZImagePipeline.__call__`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .family import Capabilities, Conditioning
from .flow import PATCH, LanguageModelFlow, descending, dynamic_shift

TURBO = {"shift": 3.0}  # of the scheduler that the distilled release comes with; the base model's has 6


@dataclass(frozen=True)
class ListedStates:
    """The states of every token, [L, D] for each prompt, which have no padding."""

    states: tuple[Tensor, ...]

    def arguments(self, rows: Tensor) -> dict[str, Any]:
        """See `Conditioning`."""
        return {"cap_feats": [self.states[row] for row in rows.tolist()]}


class ZImage(LanguageModelFlow):
    """See the module."""

    class_name = "ZImagePipeline"
    models = "Z-Image"
    usual_scale = 6.0
    in_lists = True
    capabilities = Capabilities()

    def side_unit(self, pipe: Any) -> int:
        """Whole patches."""
        return int(pipe.vae_scale_factor * PATCH)

    def distilled(self, pipe: Any) -> bool:
        """Whether it is Z-Image Turbo, by its scheduler or by the name that it was loaded from: no file says it."""
        return super().distilled(pipe) or all(pipe.scheduler.config.get(key) == value for key, value in TURBO.items())

    def call_options(self, pipe: Any, scale: float) -> dict[str, Any]:
        """Its own scale is g, and its size what its code says."""
        side = self.native_side(pipe)
        return {"guidance_scale": scale - 1, "height": side, "width": side}

    def spacing(self, pipe: Any, side: int, count: int) -> dict[str, Any]:
        """A shift that grows with the number of patches, where the scheduler shifts dynamically."""
        patches = (side // self.side_unit(pipe)) ** 2
        return {"sigmas": descending(count), "mu": dynamic_shift(pipe.scheduler.config, patches)}

    def condition(self, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> Conditioning:
        """The states of the language model."""
        device = pipe.transformer.device
        each = [pipe.encode_prompt([text], device, False)[0][0] for text in (*prompts, "")]
        return ListedStates(tuple(states.to(dtype) for states in each))

    def forward(self, pipe: Any, x: Tensor, timestep: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Of a list of images of one frame; 0 is noise, 1 an image."""
        frames, forwards = list(x.unsqueeze(2).unbind()), (1000 - timestep.float()) / 1000
        output = pipe.transformer(frames, forwards, return_dict=False, **arguments)[0]
        return -torch.stack([frame.float() for frame in output]).squeeze(2)
