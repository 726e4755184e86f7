"""Verification: samples an exported directory as a user would and says what came out. Fresh seeds, fresh process.

Everything goes through `StableDiffusionPipeline.__call__` with the rule attached by `protect`, so what is measured here
is what ships, not the sampler the calibration used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.record import Record
from ..guidance.core import Rule
from .protect import last_trace, protect, unprotect

BATCH = 32


def draw(
    pipe: Any,
    captions: Sequence[str],
    seeds: Sequence[int],
    rule: Rule | Record | None,
    *,
    scale: float,
    timesteps: int,
) -> tuple[Tensor, int]:
    """Images [N, 3, H, W] in [0, 1] of captions and seeds, and the UNet sample-evaluations they took."""
    if rule is not None:
        protect(pipe, rule)
    images, evals = [], 0
    try:
        for first in range(0, len(captions), BATCH):
            rows = slice(first, first + BATCH)
            out = pipe(
                prompt=list(captions[rows]),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
                num_inference_steps=timesteps,
                guidance_scale=scale,
                output_type="pt",
            )
            images.append(out.images.float().cpu())
            plain = 2 * timesteps * len(out.images)
            evals += plain if rule is None else sum(seen.unet_evals for seen in last_trace(pipe))
    finally:
        unprotect(pipe)
    return torch.cat(images), evals
