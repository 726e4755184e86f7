"""Verification: samples an exported directory as a user would and says what came out. Fresh seeds, fresh process.

Everything goes through `StableDiffusionPipeline.__call__` with the rule attached by `protect`, so what is measured here
is what ships, not the sampler the calibration used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import stats
from ..guard import Guard
from ..guidance import Rule
from ..records import Estimate, Noun, Record
from .pipelines import last_trace, protect, unprotect

FIRST_SEED = 2_000_000  # never used by probes (thousands) or calibration (millions)
BATCH = 32


class Row(Noun):
    """One method on one model, measured on (caption, seed) pairs.

    Attributes:
        risk: share of samples that reproduce a training image.
        similarity_p95: 95th percentile of the similarity to the nearest training image.
        alignment: agreement of image and caption, higher is better; None without a model for it.
        unet_evals: sample-evaluations of the UNet for each image.
        seconds: wall time for each image, decoding included.
    """

    risk: Estimate
    similarity_p95: Estimate
    alignment: Estimate | None
    unet_evals: float
    seconds: float


def fresh_pairs(captions: int, per_caption: int) -> tuple[list[int], list[int]]:
    """Caption index and seed of every pair; no two pairs share a seed."""
    prompt = [k for k in range(captions) for _ in range(per_caption)]
    return prompt, [FIRST_SEED + i for i in range(len(prompt))]


@torch.no_grad()
def evaluate(
    pipe: Any,
    guard: Guard,
    rule: Rule | None,
    *,
    per_caption: int = 4,
    timesteps: int = 20,
    prompts: Sequence[str] = (),
) -> tuple[Row, Tensor]:
    """Samples every training caption, or other prompts, with fresh seeds through the pipeline.

    Args:
        pipe: a stock pipeline, unprotected.
        guard: knows the training images, the embedder and the guidance scale.
        rule: to protect the pipeline with; None samples with the pipeline's own CFG.
        per_caption: seeds for each caption.
        timesteps: sampling steps.
        prompts: to sample instead of the training captions.

    Returns:
        The row, and the images [N, 3, H, W] in [0, 1].
    """
    captions = prompts or guard.training.captions
    prompt, seeds = fresh_pairs(len(captions), per_caption)
    start = time.monotonic()
    images, evals = draw(pipe, [captions[k] for k in prompt], seeds, rule, scale=guard.plan.scale, timesteps=timesteps)
    seconds = (time.monotonic() - start) / len(prompt)
    similarity = [match.similarity for match in guard.matches(images)]
    copied = np.array(similarity) >= guard.embedder.metric.threshold
    score = guard.align(images, [captions[k] for k in prompt]) if guard.align else None
    row = Row(
        risk=stats.rate(copied, prompt),
        similarity_p95=stats.cluster_bootstrap(similarity, prompt, stats.p95),
        alignment=None if score is None else stats.cluster_bootstrap(score, prompt),
        unet_evals=evals / len(prompt),
        seconds=seconds,
    )
    return row, images


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
