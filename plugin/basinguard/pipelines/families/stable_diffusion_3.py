"""Stable Diffusion 3 and 3.5: up to three text encoders, and a transformer that predicts the velocity.

Source: Esser et al., arXiv 2403.03206; `StableDiffusion3Pipeline.__call__`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .family import Capabilities, Conditioning
from .flow import FlowFamily, dynamic_shift
from .repeated_token import RepeatedToken, equal_at_end

T5_TOKENS = 256  # of the third encoder, in a call of the pipeline
EQUAL_END = "equal_end"  # of `forward`'s arguments: whether that many tokens at the end are equal, where it was seen


@dataclass(frozen=True)
class JointStates:
    """What the transformer is told.

    Attributes:
        states: of every token of all encoders, [P, L, D].
        pooled: of the whole prompt, by the first two, [P, E].
        equal_end: whether the tokens of the third are equal. Seen once: a call that looks would wait for the device.
    """

    states: Tensor
    pooled: Tensor
    equal_end: bool

    def arguments(self, rows: Tensor) -> dict[str, Any]:
        """See `Conditioning`."""
        texts = {"encoder_hidden_states": self.states[rows], "pooled_projections": self.pooled[rows]}
        return {**texts, EQUAL_END: self.equal_end}


class StableDiffusion3(FlowFamily):
    """See the module."""

    class_name = "StableDiffusion3Pipeline"
    models = "SD 3, 3.5"
    usual_scale = 7.0
    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    capabilities = Capabilities(trainable=True, exportable=True, scheduled=True)
    lora_targets: ClassVar[tuple[str, ...]] = (
        *FlowFamily.lora_targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip

    def tuned_parts(self, pipe: Any) -> tuple[str, ...]:
        """Not the third encoder (T5): no trainer of this family changes it, nor does its LoRA loader."""
        return tuple(name for name in super().tuned_parts(pipe) if name != "text_encoder_3")

    def native_side(self, pipe: Any) -> int:
        """As the transformer's configuration says."""
        return int(pipe.transformer.config.sample_size * pipe.vae_scale_factor)

    def spacing(self, pipe: Any, side: int, count: int) -> dict[str, Any]:
        """A shift that grows with the number of patches, where the scheduler shifts dynamically.

        Source: `calculate_shift` and `__call__` of the pipeline.
        """
        config = pipe.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return {}
        patches = (side // pipe.vae_scale_factor // pipe.transformer.config.patch_size) ** 2
        return {"mu": dynamic_shift(config, patches, max_shift=1.16)}

    def side_unit(self, pipe: Any) -> int:
        """Whole patches."""
        return int(pipe.vae_scale_factor * pipe.transformer.config.patch_size)

    def condition(self, pipe: Any, prompts: Sequence[str], side: int, dtype: torch.dtype) -> Conditioning:
        """The states of all text encoders, and the pooled vector."""
        device, both = pipe.transformer.device, []
        for text in (*prompts, ""):
            states, _, pooled, _ = pipe.encode_prompt(text, None, None, device, do_classifier_free_guidance=False)
            both.append((states, pooled))
        joint, vectors = (torch.cat(each).to(dtype) for each in zip(*both, strict=True))
        return JointStates(joint, vectors, equal_at_end(joint, T5_TOKENS))

    def text_states(self, pipe: Any, texts: list[str]) -> dict[str, Tensor]:
        """The states of every token of all encoders, [B, L, D], and the pooled vector, [B, E]."""
        device = pipe.transformer.device
        states, _, pooled, _ = pipe.encode_prompt(texts, None, None, device, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def state_shapes(self, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
        """CLIP's tokens and those of the third encoder, which are there as zeros where it is not.

        Raises:
            ValueError: one of CLIP's two encoders is missing, so that nothing can be drawn from a prompt.
        """
        if missing := [name for name in ("text_encoder", "text_encoder_2") if name not in configs]:
            raise ValueError(
                f"this {self.class_name} has no {missing[0]}: only the third may be left out; give it whole"
            )
        config, tokens = configs["transformer"], configs["text_encoder"]["max_position_embeddings"]
        states = (tokens + T5_TOKENS, config["joint_attention_dim"])
        return {"encoder_hidden_states": states, "pooled_projections": (config["pooled_projection_dim"],)}

    def forward(self, pipe: Any, x: Tensor, timestep: Tensor, arguments: dict[str, Any]) -> Tensor:
        """What the transformer returns; without a third encoder, its tokens are one that counts as often.

        An adapter's dropout then drops the same of all of them.
        """
        arguments = dict(arguments)
        states, equal_end = arguments["encoder_hidden_states"], arguments.pop(EQUAL_END, None)
        if not self._empty_third(pipe, states, equal_end):
            return _output(pipe, x, timestep, arguments)
        states = states[:, : 1 - T5_TOKENS]
        patches = x.shape[-2] * x.shape[-1] // pipe.transformer.config.patch_size**2
        with RepeatedToken(patches + states.shape[1], T5_TOKENS):
            return _output(pipe, x, timestep, arguments | {"encoder_hidden_states": states})

    def _empty_third(self, pipe: Any, states: Tensor, equal_end: bool | None) -> bool:
        """Whether the third encoder is not there and its tokens are equal, which noise on them ends.

        Checkpointed activations are computed again in the backward pass, where no token is repeated. A transformer
        alone, whose memory is computed, takes all tokens.
        """
        again = torch.is_grad_enabled() and pipe.transformer.gradient_checkpointing
        absent = getattr(pipe, "text_encoder_3", ...) is None
        return absent and not again and (equal_at_end(states, T5_TOKENS) if equal_end is None else equal_end)


def _output(pipe: Any, x: Tensor, timestep: Tensor, arguments: dict[str, Any]) -> Tensor:
    output: Tensor = pipe.transformer(hidden_states=x, timestep=timestep, **arguments).sample
    return output
