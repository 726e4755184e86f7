"""Ren et al., cross-attention without the summary tokens, and with a stronger begin token.

Source: Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross Attention",
ECCV 2024, arXiv 2403.11052, section 5: memorized prompts are attended to through the end-of-text and padding tokens
("summary tokens"); those are masked, and the logit of the begin token is multiplied by C1 = 1.25.

The intensity is C1 (1 leaves the mask alone). Cost: that of plain CFG, without fused attention.

Differences from the released code: it masks the empty prompt's branch by the length of the *prompt* too, and keeps the
end token unless an option says otherwise; here only the conditional branch is changed, and the end token is masked, as
the paper says. As released, the logit is multiplied whatever its sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Mitigation, needs_cross_attention
from .cross_attention import cross_attention, prompt_lengths
from .stock_pipeline import sample_pipeline
from .testbed import Batch, Testbed


def _draw(testbed: Testbed, batch: Batch, begin: float) -> Tensor:
    lengths = prompt_lengths(testbed.pipe.tokenizer, batch.prompts).to(testbed.pipe.unet.device)

    def edit(scores: Tensor) -> Tensor:
        uncond, cond = scores.chunk(2)
        summary = torch.arange(scores.shape[-1], device=scores.device) >= lengths[:, None] - 1
        changed = cond.masked_fill(summary[:, None, None], float("-inf"))
        changed[..., 0] = cond[..., 0] * begin
        return torch.cat([uncond, changed])

    with cross_attention(testbed.pipe.unet, edit):
        return sample_pipeline(testbed, batch)


REN = Mitigation(
    name="ren",
    source="Ren et al., ECCV 2024, arXiv 2403.11052, section 5",
    intensity="factor on the begin token's logit",
    intensities=(1.0, 1.1, 1.25, 1.5, 2.0),
    default=1.25,
    sampler=_draw,
    requires=needs_cross_attention,
)
