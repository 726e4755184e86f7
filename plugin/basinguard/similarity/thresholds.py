"""Thresholds from a null: what does similarity look like where nothing can have been copied?

A null is a list of best-match similarities, one for each image that is *not* a copy, each against a gallery of the size
that will be searched: the best of 10,000 is larger than the best of 32. Three are of use, and more than one should be
reported: the base model's samples on the same prompts and noise, held-out images against the training images, and
training images against each other (where duplicates must be left out by group).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats
from torch import Tensor

from ..core.estimate import Estimate
from ..core.metric import Metric
from .embedder import Embedder, WithThreshold
from .matching import embed_views, search

FALSE_POSITIVES = 1e-3
DUPLICATE = 0.98  # a train-train null above this is a pair of near-duplicates, not a threshold
NO_COPY = 1.0  # the threshold of an embedder for which none is published


@dataclass(frozen=True)
class NullThreshold:
    """A threshold measured on images that are no copies.

    Attributes:
        name: where the images came from.
        threshold: similarity that the share `false_positives` of them exceeds, with its interval.
        false_positives: the share asked for, or 1 / (n + 1) when n was too small to see it.
        gallery: how many images each was compared to.
        enough: whether n was large enough for the share asked for.
    """

    name: str
    threshold: Estimate
    false_positives: float
    gallery: int
    enough: bool

    def metric(self, embedder: str) -> Metric:
        """This threshold as the one of an embedder; the interval's upper end, so that doubt means no copy."""
        source = (
            f"null {self.name}: {self.false_positives:.2g} of {self.threshold.n} images that are no copies exceed "
            f"{self.threshold} against {self.gallery} images; upper end taken"
        )
        return Metric(embedder=embedder, threshold=self.threshold.high, source=source)

    def beside(self, published: Metric) -> Metric:
        """The threshold to judge by when another one is published: this one, measured on the images at hand.

        A null of too few images cannot see the share asked for. Then the published threshold, where there is one, is
        not undercut. The source names both.
        """
        own = self.metric(published.embedder)
        if published.threshold >= NO_COPY:
            return own
        threshold = own.threshold if self.enough else max(own.threshold, published.threshold)
        why = "" if self.enough else f" as a lower bound, because {self.threshold.n} images are few"
        source = f"{own.source}; beside the published {published.threshold:g}{why}"
        return own.model_copy(update={"threshold": threshold, "source": source})


def null_threshold(
    best: ArrayLike, *, name: str, gallery: int, false_positives: float = FALSE_POSITIVES, level: float = 0.95
) -> NullThreshold:
    """The threshold that the share `false_positives` of best matches exceeds.

    Args:
        best: best-match similarity of each image that is no copy, [N].
        name: where the images came from.
        gallery: how many images each was compared to.
        false_positives: share in (0, 1). With fewer than 1 / share images the largest one is taken and the share that
            it stands for, 1 / (N + 1), is reported instead.
        level: coverage of the interval.

    Raises:
        ValueError: fewer than 2 images, values that are not finite, or a share outside (0, 1).

    Source: order statistics; David and Nagaraja, "Order Statistics" (2003), section 7.1.
    """
    values = np.sort(np.asarray(best, float))
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"a null needs at least 2 finite similarities, got shape {values.shape}")
    if not 0 < false_positives < 1:
        raise ValueError(f"false_positives={false_positives} given; expected a share in (0, 1)")
    n = len(values)
    share = max(false_positives, 1 / (n + 1))
    rank = min(n, math.ceil((n + 1) * (1 - share)))
    ends = scipy_stats.binom.ppf([(1 - level) / 2, (1 + level) / 2], n, 1 - share)
    low, high = (values[int(np.clip(end, 1, n)) - 1] for end in (ends[0], ends[1] + 1))
    threshold = Estimate(
        value=values[rank - 1], low=min(low, values[rank - 1]), high=high, level=level, n=n, method="order statistics"
    )
    enough = share == false_positives
    return NullThreshold(name=name, threshold=threshold, false_positives=share, gallery=gallery, enough=enough)


def calibrated(
    embedder: Embedder,
    train: Tensor,
    *,
    fresh: Tensor | None = None,
    groups: Sequence[int] | None = None,
    name: str = "held-out",
    false_positives: float = FALSE_POSITIVES,
) -> WithThreshold:
    """The same embedder with a threshold measured on these very images, for a guard or any other judge.

    Args:
        embedder: the embedder.
        train: training images, [M, 3, H, W] in [0, 1].
        fresh: images that cannot be copies, [N, 3, h, w]: the base model's samples, or held-out images. None compares
            the training images with each other.
        groups: duplicate group of each training image, for None; all different by default.
        name: what `fresh` is, "base samples" or "held-out".
        false_positives: share of images that are no copies which the threshold may take for one.

    Raises:
        ValueError: fewer than 2 images, or duplicates that `groups` does not name.

    Example:
        >>> from basinguard.similarity.structure import Structure
        >>> images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> calibrated(Structure(), images).metric.threshold >= Structure().metric.threshold
        True
    """
    train_views = embed_views(train, embedder)
    if fresh is None:
        owner = range(len(train)) if groups is None else groups
        measured = from_neighbours(
            train_views.straight, owner, embedder, mirrored=train_views.mirrored, false_positives=false_positives
        )
        if measured.threshold.value > DUPLICATE:
            raise ValueError(
                f"two training images of different groups are {measured.threshold.value:.3f} alike: near-duplicates "
                "leave nothing to tell a copy by; give their groups (`basinguard curate` finds them)"
            )
    else:
        fresh_views = embed_views(fresh, embedder)
        measured = from_samples(
            fresh_views.straight,
            train_views.straight,
            embedder,
            mirrored=fresh_views.mirrored,
            name=name,
            false_positives=false_positives,
        )
    return WithThreshold(embedder, measured.beside(embedder.metric))


def from_samples(
    samples: Tensor,
    train: Tensor,
    embedder: Embedder | None = None,
    *,
    mirrored: Tensor | None = None,
    name: str = "base samples",
    false_positives: float = FALSE_POSITIVES,
) -> NullThreshold:
    """From embeddings [N, D] of images that cannot be copies: the base model's samples, or held-out images.

    `train` are embeddings of the training images, [M, D], all by `embedder`, `mirrored` those of the mirrored
    samples, where matching is mirror-aware; `name` is "base samples" or "held-out", `false_positives` as in
    `null_threshold`.
    """
    best = search(samples, train, embedder)[0][:, 0]
    if mirrored is not None:
        best = torch.maximum(best, search(mirrored, train, embedder)[0][:, 0])
    return null_threshold(best.tolist(), name=name, gallery=len(train), false_positives=false_positives)


def from_neighbours(
    train: Tensor,
    groups: Sequence[int],
    embedder: Embedder | None = None,
    *,
    mirrored: Tensor | None = None,
    false_positives: float = FALSE_POSITIVES,
) -> NullThreshold:
    """From the training images themselves: each one's best match outside its own duplicate group.

    `train` are embeddings by `embedder`, [M, D], `groups` the duplicate group of each, `mirrored`
    embeddings of the mirrored images.

    Raises:
        ValueError: one group holds every image, so nothing is left to compare to.
    """
    best = best_outside(train, train, groups, groups, embedder, mirrored=mirrored)
    return null_threshold(best, name="train-train", gallery=len(train) - 1, false_positives=false_positives)


def best_outside(
    queries: Tensor,
    gallery: Tensor,
    own: Sequence[int],
    groups: Sequence[int],
    embedder: Embedder | None = None,
    *,
    mirrored: Tensor | None = None,
) -> list[float]:
    """Best similarity of each query to a known image of another group.

    Args:
        queries: [N, D]; `own` is the group of each.
        gallery: [M, D]; `groups` is the group of each.
        embedder: made both, and compares them; None: by dot products.
        mirrored: embeddings of the mirrored queries.
    """
    mine, theirs = torch.as_tensor(own), torch.as_tensor(groups)
    if len(mine) != len(queries) or len(theirs) != len(gallery):
        raise ValueError(f"{len(mine)} and {len(theirs)} groups given for {len(queries)} and {len(gallery)} images")
    largest = int(torch.unique(theirs, return_counts=True)[1].max())
    if largest == len(gallery):
        raise ValueError(f"all {len(gallery)} images are in one duplicate group: no other image to compare to")
    best = torch.full((len(queries),), -math.inf)
    for vectors in (queries, mirrored) if mirrored is not None else (queries,):
        values, indices = search(vectors, gallery, embedder, k=largest + 1)
        allowed = theirs[indices.cpu()] != mine[:, None]
        first = values.cpu().gather(1, allowed.float().argmax(1, keepdim=True))[:, 0]  # in the order of likeness
        best = torch.maximum(best, first.masked_fill(~allowed.any(1), -math.inf))
    return best.tolist()
