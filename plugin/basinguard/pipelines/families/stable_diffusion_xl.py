"""Stable Diffusion XL: two text encoders, and a UNet that is also given a pooled vector of the caption and sizes.

The sizes are those that an image had and has, which here are those of the picture to draw, uncropped. The empty prompt
is a row of zeros where the pipeline says so, as when it samples.

Source: Podell et al., arXiv 2307.01952, section 2.2; `StableDiffusionXLPipeline.encode_prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .family import Capabilities, Conditioning
from .stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class PooledStates:
    """What XL's UNet is told.

    Attributes:
        states: of every token, [P, L, D].
        pooled: of the whole prompt, [P, E].
        sizes: original height and width, top and left of the crop, target height and width, [6], in pixels.
    """

    states: Tensor
    pooled: Tensor
    sizes: Tensor

    def arguments(self, rows: Tensor) -> dict[str, Any]:
        """See `Conditioning`."""
        more = {"text_embeds": self.pooled[rows], "time_ids": self.sizes.expand(len(rows), -1)}
        return {"encoder_hidden_states": self.states[rows], "added_cond_kwargs": more}


class StableDiffusionXL(StableDiffusion):
    """See the module."""

    class_name = "StableDiffusionXLPipeline"
    models = "SDXL"
    usual_scale = 5.0
    encoder_names = ("text_encoder", "text_encoder_2")
    capabilities = Capabilities(trainable=True, exportable=True, comfyui=True, scheduled=True)
    loading_options: ClassVar[dict[str, Any]] = {"add_watermarker": False}  # it would change every image by a little

    def condition(self, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> Conditioning:
        """The states of both text encoders and the second one's pooled vector."""
        device, texts = pipe.unet.device, (*prompts, "")
        both = [pipe.encode_prompt(text, device=device, do_classifier_free_guidance=False)[::2] for text in texts]
        states, pooled = (torch.cat(each).to(dtype) for each in zip(*both, strict=True))
        if pipe.config.force_zeros_for_empty_prompt:
            states[-1], pooled[-1] = 0, 0
        return PooledStates(states, pooled, torch.tensor([side, side, 0, 0, side, side], dtype=dtype, device=device))

    def text_states(self, pipe: Any, texts: list[str]) -> dict[str, Tensor]:
        """The states of every token by both encoders, [B, L, D], and the pooled vector, [B, E]."""
        states, _, pooled, _ = pipe.encode_prompt(texts, device=pipe.unet.device, do_classifier_free_guidance=False)
        if pipe.config.force_zeros_for_empty_prompt:
            worded = torch.tensor([text != "" for text in texts], dtype=states.dtype, device=states.device)
            states, pooled = states * worded[:, None, None], pooled * worded[:, None]
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def state_shapes(self, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """Of both encoders beside each other; the second one's projection."""
        pooled = (configs["text_encoder_2"]["projection_dim"],)
        return {**super().state_shapes(configs), "text_embeds": pooled}

    def arguments(self, states: dict[str, Tensor], sizes: Tensor) -> dict[str, Any]:
        """Each row with the sizes of its own picture."""
        more = {"text_embeds": states["text_embeds"], "time_ids": sizes}
        return {"encoder_hidden_states": states["encoder_hidden_states"], "added_cond_kwargs": more}
