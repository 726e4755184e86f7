"""How much a model copies as people sample it: on fresh seeds, through the stock pipeline, with a rule or without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.metric import Metric
from ..core.record import Record
from ..core.schema import Finite, Schema
from ..guard.guard import Guard
from ..guidance.core import Rule
from .stock_sampling import fresh_pairs, sample_stock

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Evaluation(Schema):
    """One rule on one model, measured on (caption, seed) pairs.

    Attributes:
        risk: share of samples that reproduce a training image.
        similarity_p95: 95th percentile of the similarity to the nearest training image.
        alignment: agreement of image and caption, higher is better; None without a model for it.
        unet_evals: sample-evaluations of the UNet for each image.
        seconds: wall time for each image, decoding included.
        metric: what called a sample a copy; None in what earlier versions wrote.
        similarities: of each sample to the nearest training image; none in what earlier versions wrote.
    """

    risk: Estimate
    similarity_p95: Estimate
    alignment: Estimate | None
    unet_evals: float
    seconds: float
    metric: Metric | None = None
    similarities: tuple[Finite, ...] = ()


@torch.no_grad()
def evaluate(
    pipe: DiffusionPipeline,
    guard: Guard,
    rule: Rule | Record | None,
    *,
    per_caption: int = 4,
    prompts: Sequence[str] = (),
) -> tuple[Evaluation, Tensor]:
    """Samples every training caption, or other prompts, with fresh seeds through the pipeline.

    Args:
        pipe: a stock pipeline.
        guard: knows the training images, the embedder and how to sample.
        rule: to protect the pipeline with, or a record; None samples with the pipeline's own CFG.
        per_caption: seeds for each caption.
        prompts: to sample instead of the training captions.

    Returns:
        What was measured, and the images [N, 3, H, W] in [0, 1].
    """
    captions = prompts or guard.training.captions
    prompt, seeds = fresh_pairs(len(captions), per_caption, seed_table.VERIFICATION)
    texts = [captions[k] for k in prompt]
    start = time.monotonic()
    samples = sample_stock(pipe, texts, seeds, rule, guard.plan)
    seconds = (time.monotonic() - start) / len(prompt)
    similarity = [match.similarity for match in guard.matches(samples.images)]
    copied = np.array(similarity) >= guard.embedder.metric.threshold
    evaluation = Evaluation(
        risk=stats.rate(copied, prompt),
        similarity_p95=stats.cluster_bootstrap(similarity, prompt, stats.p95),
        alignment=mean_alignment(guard, samples.images, texts, prompt),
        unet_evals=samples.unet_evals / len(prompt),
        seconds=seconds,
        metric=guard.embedder.metric,
        similarities=tuple(round(value, 4) for value in similarity),
    )
    return evaluation, samples.images


def mean_alignment(guard: Guard, images: Tensor, texts: Sequence[str], prompt: Sequence[int]) -> Estimate | None:
    """Agreement of images and texts, clustered by the index of the prompt; None without a model for it."""
    if guard.score_alignment is None:
        return None
    return stats.cluster_bootstrap(guard.score_alignment(images, texts), prompt)
