"""Stable Diffusion 1.x and 2.x: one text encoder, a UNet that predicts epsilon or v."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...diffusion.noise_schedule import NoiseSchedule
from ...diffusion.sampling_options import USUAL_SCALE
from .family import Capabilities, Conditioning, Family


@dataclass(frozen=True)
class TokenStates:
    """The states of every token, [P, L, D]."""

    states: Tensor

    def arguments(self, rows: Tensor) -> dict[str, Any]:
        """See `Conditioning`."""
        return {"encoder_hidden_states": self.states[rows]}


class StableDiffusion(Family):
    """See the module."""

    class_name = "StableDiffusionPipeline"
    models = "SD 1.x, 2.x"
    usual_scale = USUAL_SCALE
    denoiser_name = "unet"
    encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    capabilities = Capabilities(trainable=True, comparable=True, exportable=True, comfyui=True, scheduled=True)
    loading_options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def native_side(self, pipe: Any) -> int:
        """As the UNet's configuration says."""
        return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)

    def prediction_type(self, pipe: Any) -> str:
        """As the scheduler says."""
        kind = pipe.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {kind!r} is not supported; expected 'epsilon' or 'v_prediction'")
        return str(kind)

    def schedule(self, pipe: Any, side: int) -> NoiseSchedule:
        """The same at every size."""
        return NoiseSchedule(pipe.scheduler.alphas_cumprod.double().cpu())

    def condition(self, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> Conditioning:
        """The states of the text encoder."""
        device, texts = pipe.unet.device, (*prompts, "")
        each = [pipe.encode_prompt(text, device, 1, do_classifier_free_guidance=False)[0] for text in texts]
        return TokenStates(torch.cat(each).to(dtype))

    def text_states(self, pipe: Any, texts: list[str]) -> dict[str, Tensor]:
        """The states of every token, [B, L, D]."""
        return {"encoder_hidden_states": pipe.encode_prompt(texts, pipe.unet.device, 1, False)[0]}

    def state_shapes(self, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """Tokens, and what the UNet attends to."""
        tokens = configs["text_encoder"]["max_position_embeddings"]
        return {"encoder_hidden_states": (tokens, configs["unet"]["cross_attention_dim"])}

    def forward(self, pipe: Any, x: Tensor, timestep: Tensor, arguments: dict[str, Any]) -> Tensor:
        """What the UNet returns."""
        output: Tensor = pipe.unet(x, timestep, **arguments).sample
        return output
