"""Zhao et al., GUARD: towards a prediction whose attention spikes are flattened, away from the prompt's own.

Source: Zhao, Triantafillou and Triantafillou, ICML 2026, arXiv 2603.00133 (CA-in-GUARD); kairanzhao/GUARD:

    eps = eps(x) + s (eps+ - eps(x)) - r (eps(x, y) - eps(x)),    s = 7.5, r = 2

eps+ is the conditional prediction with attenuated cross-attention: in the layers of the down and middle blocks, a token
whose largest score over the pixels stands more than 0.1 standard deviations above the mean over tokens (the begin
token apart) has its scores multiplied by 0.3. The equations are read from the released code and from public summaries;
the paper's own text was not at hand. Not to be confused with this package's guard.

The intensity is r at s = 7.5; both are scaled to the testbed's guidance scale. Cost: three evaluations a timestep, not
two.

Differences from the released code: no reweighting of neighbouring prompts (it is off in the published commands), and
each head of each sample is judged alone, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance.core import combine
from .base import Mitigation, needs_cross_attention
from .cross_attention import cross_attention
from .stock_pipeline import Forward, Guide, guided, sample_pipeline
from .testbed import Batch, Testbed

THRESHOLD, FACTOR = 0.1, 0.3


def attenuate(scores: Tensor) -> Tensor:
    """Scores [B, heads, pixels, tokens] with those of spiking tokens multiplied by 0.3."""
    highest = scores.amax(2, keepdim=True)
    words = highest[..., 1:]
    spike = (highest - words.mean(-1, keepdim=True)) / (words.std(-1, keepdim=True) + 1e-6) > THRESHOLD
    spike[..., 0] = False
    return torch.where(spike, scores * FACTOR, scores)


def _early(name: str) -> bool:
    return name.startswith(("down_blocks", "mid_block"))


def _guide(testbed: Testbed, repulsion: float, forward: Forward) -> Guide:
    def predict(x: Tensor, timestep: Tensor, text_states: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
        with cross_attention(testbed.pipe.unet, attenuate, _early):
            positive = forward(x, timestep, text_states)
        return combine(uncond, positive, testbed.scale) - repulsion * testbed.units * (cond - uncond)

    return predict


def _draw(testbed: Testbed, batch: Batch, repulsion: float) -> Tensor:
    with guided(testbed.pipe, lambda forward: _guide(testbed, repulsion, forward)):
        return sample_pipeline(testbed, batch)


GUARD_ZHAO = Mitigation(
    name="guard-icml",
    source="Zhao et al., ICML 2026, arXiv 2603.00133; released code",
    intensity="repulsion r, at s = 7.5",
    intensities=(0.0, 1.0, 2.0, 3.0, 4.0),
    default=2.0,
    sampler=_draw,
    requires=needs_cross_attention,
)
