"""TODO one line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.schema import Schema
from ..guard.guard import Guard
from ..guidance.core import Rule
from .stock_sampling import draw


class Row(Schema):
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
    return prompt, [seed_table.VERIFICATION + i for i in range(len(prompt))]


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
    score = guard.score_alignment(images, [captions[k] for k in prompt]) if guard.score_alignment else None
    row = Row(
        risk=stats.rate(copied, prompt),
        similarity_p95=stats.cluster_bootstrap(similarity, prompt, stats.p95),
        alignment=None if score is None else stats.cluster_bootstrap(score, prompt),
        unet_evals=evals / len(prompt),
        seconds=seconds,
    )
    return row, images
