"""What a UNet is told of a caption: the states of one text encoder, or what Stable Diffusion XL's takes of two.

XL's UNet also gets a pooled vector of the caption and the sizes that an image had and has, which are those of the
picture to draw here, uncropped. Its empty prompt is a row of zeros where the pipeline says so, as when it samples.

Source: Podell et al., arXiv 2307.01952, section 2.2; `StableDiffusionXLPipeline.encode_prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextConditioning:
    """Of several prompts, the empty one last: `diffusion.sampling.EMPTY` indexes it.

    Attributes:
        states: of every token, [P, L, D].
        pooled: of the whole prompt, [P, E]; None where the UNet takes none.
        sizes: heights and widths, [6]; None likewise.
    """

    states: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    @classmethod
    def of(cls, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> TextConditioning:
        """Encodes prompts, and the empty one.

        Args:
            pipe: a `StableDiffusionPipeline` or `StableDiffusionXLPipeline`.
            prompts: texts.
            side: of the images to draw, in pixels.
            dtype: of the UNet.
        """
        device, texts = pipe.unet.device, (*prompts, "")
        if not is_xl(pipe):
            each = [pipe.encode_prompt(text, device, 1, do_classifier_free_guidance=False)[0] for text in texts]
            return cls(torch.cat(each).to(dtype))
        both = [pipe.encode_prompt(text, device=device, do_classifier_free_guidance=False)[::2] for text in texts]
        states, pooled = (torch.cat(each).to(dtype) for each in zip(*both, strict=True))
        if pipe.config.force_zeros_for_empty_prompt:
            states[-1], pooled[-1] = 0, 0
        return cls(states, pooled, torch.tensor([side, side, 0, 0, side, side], dtype=dtype, device=device))

    def arguments(self, prompt: Tensor) -> dict[str, Any]:
        """The UNet's keyword arguments for rows of these prompts, [B]."""
        states = {"encoder_hidden_states": self.states[prompt]}
        if self.pooled is None or self.sizes is None:
            return states
        more = {"text_embeds": self.pooled[prompt], "time_ids": self.sizes.expand(len(prompt), -1)}
        return {**states, "added_cond_kwargs": more}


def is_xl(pipe: Any) -> bool:
    """Whether a pipeline is Stable Diffusion XL's: a second text encoder tells the UNet of the caption too."""
    return getattr(pipe, "text_encoder_2", None) is not None


def tuned_parts(pipe: Any) -> tuple[str, ...]:
    """The components that a fine-tune may change."""
    return ("unet", "text_encoder", "text_encoder_2") if is_xl(pipe) else ("unet", "text_encoder")


def modules_of(pipe: Any) -> list[Any]:
    """Every network of a pipeline that is measured."""
    return [pipe.vae, *(getattr(pipe, name) for name in tuned_parts(pipe))]
