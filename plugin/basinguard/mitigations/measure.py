"""One point of one method's curve: sampled, judged, with intervals, kept sample by sample for paired comparisons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..core import stats
from ..core.estimate import Estimate
from ..core.schema import Finite, Schema
from ..similarity.diversity import pairwise
from ..similarity.embedder import embed_all
from ..similarity.kernel_distance import KernelDistance
from ..similarity.matching import nearest
from .base import Batch, Bench, Method, sample

CHUNK = 16  # samples at once: the gradients of some methods need the room


class Point(Schema):
    """One method at one strength on the pairs of the comparison.

    Attributes:
        method, strength, note: which.
        risk: share of samples that reproduce a training image.
        similarity_p95: 95th percentile of the similarity to the nearest training image.
        alignment: agreement of image and caption, higher is better; None without a model for it.
        quality: kernel distance to images that were not trained on, lower is better; its method names the eye and the
            images. None without a base model and held-out images.
        diversity: mean of 1 - similarity over pairs of seeds of one prompt.
        fidelity: similarity of samples of held-out prompts to the nearest held-out image; None without such images.
        unet_evals: rows the UNets evaluated for each sample.
        seconds: wall time for each sample, on a machine that may have been busy; the table of costs has ratios.
        similarities, alignments: of every sample, in the order of the pairs.
    """

    method: str
    strength: Finite
    note: str
    risk: Estimate
    similarity_p95: Estimate
    alignment: Estimate | None
    quality: Estimate | None = None
    diversity: Estimate | None
    fidelity: Estimate | None
    unet_evals: Annotated[float, Field(ge=0)]
    seconds: Finite
    similarities: tuple[Finite, ...]
    alignments: tuple[Finite, ...]

    @property
    def utility(self) -> Estimate | None:
        """What must not be lost: alignment; without a model for it, fidelity to the subject."""
        return self.alignment or self.fidelity

    def copied(self, threshold: float) -> np.ndarray:
        """Whether each sample reproduces a training image, [N] bool."""
        return np.array(self.similarities) >= threshold


@dataclass(frozen=True)
class Pairs:
    """Prompts and seeds of a comparison.

    Attributes:
        batch: every pair.
        cluster: which prompt each pair belongs to.
        heldout, subject: pairs of held-out prompts, and the held-out images, where there are any.
        quality: distance of samples to images that were not trained on.
    """

    batch: Batch
    cluster: tuple[int, ...]
    heldout: Batch | None = None
    subject: Tensor | None = None
    quality: KernelDistance | None = None


@torch.no_grad()
def measure(bench: Bench, method: Method, strength: float, pairs: Pairs) -> tuple[Point, Tensor]:
    """Samples every pair and judges the images.

    Returns:
        The point, and the images [N, 3, H, W] in [0, 1].
    """
    method.prepare(bench)
    start = time.monotonic()
    images, rows = draw(bench, method, strength, pairs.batch)
    seconds = (time.monotonic() - start) / len(pairs.batch)
    similarity = [round(match.similarity, 4) for match in bench.guard.matches(images)]
    score = [round(s, 4) for s in bench.guard.align(images, pairs.batch.prompts).tolist()] if bench.guard.align else []
    point = Point(
        method=method.name,
        strength=strength,
        note=method.note(bench, strength),
        risk=stats.rate(np.array(similarity) >= bench.guard.embedder.metric.threshold, pairs.cluster),
        similarity_p95=stats.cluster_bootstrap(similarity, pairs.cluster, stats.p95),
        alignment=stats.cluster_bootstrap(score, pairs.cluster) if score else None,
        quality=_quality(images, pairs),
        diversity=_diversity(bench, images, pairs.cluster),
        fidelity=_fidelity(bench, method, strength, pairs),
        unet_evals=rows / len(pairs.batch),
        seconds=seconds,
        similarities=tuple(similarity),
        alignments=tuple(score),
    )
    return point, images


@torch.no_grad()
def draw(bench: Bench, method: Method, strength: float, batch: Batch) -> tuple[Tensor, int]:
    """Images [N, 3, H, W] in [0, 1] of a batch, in chunks, and the UNet rows they took."""
    images, rows = [], 0
    for first in range(0, len(batch), CHUNK):
        latents, count = sample(bench, method, strength, batch[first : first + CHUNK])
        images.append(bench.model.decode(latents))
        rows += count
    return torch.cat(images), rows


def _diversity(bench: Bench, images: Tensor, cluster: Sequence[int]) -> Estimate | None:
    if len(set(cluster)) == len(cluster):
        return None  # one seed a prompt
    return pairwise(embed_all(images, bench.guard.embedder), list(cluster))


def _quality(images: Tensor, pairs: Pairs) -> Estimate | None:
    if pairs.quality is None:
        return None
    shares = pairs.quality(images, torch.tensor(pairs.cluster))
    found = stats.cluster_bootstrap(shares, pairs.cluster)
    return found.model_copy(update={"method": f"{found.method}; {pairs.quality.method}"[:200]})


def _fidelity(bench: Bench, method: Method, strength: float, pairs: Pairs) -> Estimate | None:
    if pairs.heldout is None or pairs.subject is None:
        return None
    images, _ = draw(bench, method, strength, pairs.heldout)
    found = [match.similarity for match in nearest(images, pairs.subject, bench.guard.embedder, mirror=False)]
    return stats.cluster_bootstrap(found, np.arange(len(found)))
