"""Optimise the prompt's embedding until it pulls less.

Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024,
arXiv 2407.21720. Inference (section 5.1): with x_T fixed, Adam on the embedding e minimises
||eps(x_T, e) - eps(x_T, "")||_2 at the first timestep until it is below a target.
Defaults of the paper's code: learning rate 0.05, at most 10 iterations, target 3 for Stable Diffusion 1.4 (8 in
others' use).

Its training-time filter (section 5.2; `--hard_threshold`, 2 as released) changes the fine-tune instead of the sampling,
so it has no row here: it is `adapters.filters.LargeGap`, turned on by `adapters.acting.Interventions(large_gap=...)`.

Differences. The absolute target belongs to one model at one size (`method` papers use 0.9 to 8), so strength is the
share of the sample's own first norm that is left. Every (prompt, seed) has an embedding of its own; the released code
shares one among the images of a prompt and uses AdamW. The begin token's embedding stays, as released. The
unconditional prediction does not depend on e and is evaluated once.

Cost: at most 10 further evaluations with gradients for each sample, and the memory of one backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Batch, Bench, Method
from .stock_pipeline import empty, run, states

ITERATIONS = 10
RATE = 0.05


def optimise(bench: Bench, batch: Batch, share: float) -> Tensor:
    """Embeddings [B, tokens, width] whose first pull is at most `share` of the original's, where 10 steps suffice."""
    x, told, t = bench.noise(batch).to(bench.pipe.unet.device), states(bench, batch), _first_timestep(bench)
    with torch.no_grad():
        uncond = bench.pipe.unet(x, t, empty(bench, len(batch)), return_dict=False)[0]
    changed = told.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([changed], lr=RATE)
    target: Tensor | None = None
    kept = told.clone()
    with torch.enable_grad():
        for _ in range(ITERATIONS):
            pull = (bench.pipe.unet(x, t, changed, return_dict=False)[0] - uncond).flatten(1).norm(dim=1)
            target = share * pull.detach() if target is None else target
            kept = _where(pull > target, changed.detach(), kept)
            if not bool((pull > target).any()):
                break
            optimiser.zero_grad()
            (pull * (pull > target)).sum().backward()
            assert changed.grad is not None
            changed.grad[:, 0] = 0
            optimiser.step()
            kept = _where(pull > target, changed.detach(), kept)
    return kept


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows[:, None, None], new, old)


def _first_timestep(bench: Bench) -> Tensor:
    bench.pipe.scheduler.set_timesteps(bench.timesteps)
    first: Tensor = bench.pipe.scheduler.timesteps[0]
    return first


def _draw(bench: Bench, batch: Batch, share: float) -> Tensor:
    return run(bench, batch, embeddings=optimise(bench, batch, share))


WEN = Method(
    name="wen",
    source="Wen et al., ICLR 2024, arXiv 2407.21720, section 5.1",
    strength="share of the first pull left",
    strengths=(0.9, 0.75, 0.5, 0.35, 0.2),
    default=0.5,
    draw=_draw,
)
