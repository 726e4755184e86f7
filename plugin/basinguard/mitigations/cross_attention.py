"""Changes the scores of cross-attention before the softmax, in chosen layers, and puts everything back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ScoreEdit = Callable[[Tensor], Tensor]  # scores [B, heads, pixels, tokens] -> scores of the same shape


class Edited:
    """An attention processor that hands its scores to `edit` before the softmax.

    The attention itself is the usual one: Vaswani et al., arXiv 1706.03762, eq. 1. diffusers' own processor fuses
    scores and softmax, so it cannot be text_states to change one of them.
    """

    def __init__(self, edit: ScoreEdit) -> None:
        self.edit = edit

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *unused: Any, **ignored: Any
    ) -> Tensor:
        """Output [B, pixels, width] of hidden states [B, pixels, width] and text states [B, tokens, width]."""
        query, key, value = (
            _heads(layer(x), attn.heads)
            for layer, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        scores = self.edit(query @ key.transpose(-1, -2) * attn.scale)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@contextmanager
def cross_attention(unet: Any, edit: ScoreEdit, where: Callable[[str], bool] = lambda name: True) -> Iterator[None]:
    """Inside, `edit` sees the scores of every cross-attention layer whose name `where` accepts."""
    before = dict(unet.attn_processors)
    chosen = {name: Edited(edit) if "attn2" in name and where(name) else old for name, old in before.items()}
    unet.set_attn_processor(chosen)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def prompt_lengths(tokenizer: Any, prompts: tuple[str, ...]) -> Tensor:
    """Number of tokens of each prompt with its begin and end tokens, without padding, [B]."""
    most = tokenizer.model_max_length
    return torch.tensor([min(len(ids), most) for ids in tokenizer(list(prompts)).input_ids])
