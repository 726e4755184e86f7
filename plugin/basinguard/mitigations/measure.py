"""One point of one mitigation's curve: sampled, judged, with intervals, and sample by sample for paired comparisons."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from .base import Mitigation, sample_mitigated
from .pairs import ComparedPairs
from .testbed import Batch, Testbed

CHUNK = 16  # samples at once: the gradients of some mitigations need the room


class Point(Schema):
    """One mitigation at one intensity on the pairs of the comparison.

    Attributes:
        mitigation, intensity, note: which.
        risk: share of samples that reproduce a training image.
        similarity_p95: 95th percentile of the similarity to the nearest training image.
        alignment: agreement of image and caption, higher is better; None without a model for it.
        quality: kernel distance to images that were not trained on, lower is better; its method names the embedder
            and the images. None without a base model and held-out images.
        diversity: mean of 1 - similarity over pairs of seeds of one prompt.
        taught: what samples of held-out prompts show of what was taught, net of copies: 0 is the base model, 1 true
            images. None without a base model.
        unet_evals: rows the UNets evaluated for each sample.
        seconds: wall time for each sample, on a machine that may have been busy; the table of costs has ratios.
        similarities, alignments: of every sample, in the order of the pairs.
    """

    mitigation: str
    intensity: Finite
    note: str
    risk: Estimate
    similarity_p95: Estimate
    alignment: Estimate | None
    quality: Estimate | None = None
    diversity: Estimate | None
    taught: Estimate | None = None
    unet_evals: Annotated[float, Field(ge=0)]
    seconds: Finite
    similarities: tuple[Finite, ...]
    alignments: tuple[Finite, ...]

    @property
    def utility(self) -> Estimate | None:
        """What must not be lost: what was taught; where that cannot be measured, alignment."""
        return self.taught or self.alignment

    @property
    def utility_name(self) -> str:
        """What `utility` is."""
        return "what is left of what was taught" if self.taught else "alignment of image and caption"

    def copied(self, threshold: float) -> np.ndarray:
        """Whether each sample reproduces a training image, [N] bool."""
        return np.array(self.similarities) >= threshold


@torch.no_grad()
def measure_point(
    testbed: Testbed, mitigation: Mitigation, intensity: float, pairs: ComparedPairs
) -> tuple[Point, Tensor]:
    """Samples every pair and judges the images.

    Returns:
        The point, and the images [N, 3, H, W] in [0, 1].
    """
    mitigation.prepare(testbed, intensity)
    start = time.monotonic()
    images, rows = sample_images(testbed, mitigation, intensity, pairs.batch)
    seconds = (time.monotonic() - start) / len(pairs.batch)
    taught = _taught(testbed, mitigation, intensity, pairs)
    guard, prompts = testbed.guard, pairs.batch.prompts
    similarity = [round(match.similarity, 4) for match in guard.matches(images)]
    score = [round(s, 4) for s in guard.score_alignment(images, prompts).tolist()] if guard.score_alignment else []
    point = Point(
        mitigation=mitigation.name,
        intensity=intensity,
        note=mitigation.note(testbed, intensity),
        risk=stats.rate(np.array(similarity) >= guard.embedder.metric.threshold, pairs.cluster),
        similarity_p95=stats.cluster_bootstrap(similarity, pairs.cluster, stats.p95),
        alignment=stats.cluster_bootstrap(score, pairs.cluster) if score else None,
        quality=_quality(images, pairs),
        diversity=_diversity(testbed, images, pairs.cluster),
        taught=taught,
        unet_evals=rows / len(pairs.batch),
        seconds=seconds,
        similarities=tuple(similarity),
        alignments=tuple(score),
    )
    return point, images


@torch.no_grad()
def sample_images(testbed: Testbed, mitigation: Mitigation, intensity: float, batch: Batch) -> tuple[Tensor, int]:
    """Images [N, 3, H, W] in [0, 1] of a batch, in chunks, and the UNet rows they took."""
    images, rows = [], 0
    for first in range(0, len(batch), CHUNK):
        latents, count = sample_mitigated(testbed, mitigation, intensity, batch[first : first + CHUNK])
        images.append(testbed.model.decode(latents))
        rows += count
    return torch.cat(images), rows


def _diversity(testbed: Testbed, images: Tensor, cluster: Sequence[int]) -> Estimate | None:
    if len(set(cluster)) == len(cluster):
        return None  # one seed a prompt
    return pairwise(embed_all(images, testbed.guard.embedder), list(cluster))


def _quality(images: Tensor, pairs: ComparedPairs) -> Estimate | None:
    if pairs.quality is None:
        return None
    shares = pairs.quality(images, torch.tensor(pairs.cluster))
    distance = stats.cluster_bootstrap(shares, pairs.cluster)
    return distance.model_copy(update={"method": f"{distance.method}; {pairs.quality.method}"[:200]})


def _taught(testbed: Testbed, mitigation: Mitigation, intensity: float, pairs: ComparedPairs) -> Estimate | None:
    """What is left of what was taught, by samples of held-out prompts."""
    held_out = pairs.held_out
    if held_out is None:
        return None
    images, _ = sample_images(testbed, mitigation, intensity, held_out.batch)
    return held_out.taught(testbed, images)
