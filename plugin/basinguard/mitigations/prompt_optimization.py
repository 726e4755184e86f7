"""Wen et al., optimise the prompt's embedding until it pulls less.

Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024,
arXiv 2407.21720. Inference (section 5.1): with x_T fixed, Adam on the embedding e minimises
||eps(x_T, e) - eps(x_T, "")||_2 at the first timestep until it is below a target.
Defaults of the paper's code: learning rate 0.05, at most 10 iterations, target 3 for Stable Diffusion 1.4 (8 in
others' use).

Its training-time filter (section 5.2; `--hard_threshold`, 2 as released) changes the fine-tune instead of the sampling,
so it has no row here: it is `training.loss_filters.LargeGap`, turned on by `Interventions(large_gap=...)`.

Differences. The absolute target belongs to one model at one size (papers use 0.9 to 8), so the intensity is the
share of the sample's own first norm that is left. Every (prompt, seed) has an embedding of its own; the released code
shares one among the images of a prompt and uses AdamW. The begin token's embedding stays, as released. The
unconditional prediction does not depend on e and is evaluated once.

Cost: at most 10 further evaluations with gradients for each sample, and the memory of one backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Mitigation
from .stock_pipeline import empty, sample_pipeline, states
from .testbed import Batch, Testbed

ITERATIONS = 10
RATE = 0.05


def optimise(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    """Embeddings [B, tokens, width] whose first pull is at most `share` of the original's, where 10 steps suffice."""
    x, text_states, t = (
        testbed.noise(batch).to(testbed.pipe.unet.device),
        states(testbed, batch),
        _first_timestep(testbed),
    )
    with torch.no_grad():
        uncond = testbed.pipe.unet(x, t, empty(testbed, len(batch)), return_dict=False)[0]
    changed = text_states.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([changed], lr=RATE)
    target: Tensor | None = None
    adjusted = text_states.clone()
    with torch.enable_grad():
        for _ in range(ITERATIONS):
            pull = (testbed.pipe.unet(x, t, changed, return_dict=False)[0] - uncond).flatten(1).norm(dim=1)
            target = share * pull.detach() if target is None else target
            adjusted = _where(pull > target, changed.detach(), adjusted)
            if not bool((pull > target).any()):
                break
            optimiser.zero_grad()
            (pull * (pull > target)).sum().backward()
            assert changed.grad is not None
            changed.grad[:, 0] = 0
            optimiser.step()
            adjusted = _where(pull > target, changed.detach(), adjusted)
    return adjusted


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows[:, None, None], new, old)


def _first_timestep(testbed: Testbed) -> Tensor:
    testbed.pipe.scheduler.set_timesteps(testbed.timesteps)
    first: Tensor = testbed.pipe.scheduler.timesteps[0]
    return first


def _draw(testbed: Testbed, batch: Batch, share: float) -> Tensor:
    return sample_pipeline(testbed, batch, embeddings=optimise(testbed, batch, share))


WEN = Mitigation(
    name="wen",
    source="Wen et al., ICLR 2024, arXiv 2407.21720, section 5.1",
    intensity="share of the first pull left",
    intensities=(0.9, 0.75, 0.5, 0.35, 0.2),
    default=0.5,
    sampler=_draw,
)
