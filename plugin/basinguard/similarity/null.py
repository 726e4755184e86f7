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

from ..records import Estimate, Metric
from .match import search

FALSE_POSITIVES = 1e-3


@dataclass(frozen=True)
class Null:
    """A threshold measured on images that are no copies.

    Attributes:
        name: where the images came from.
        threshold: similarity that the share `false_positives` of them exceeds, with its interval.
        false_positives: the share asked for, or 1 / (n + 1) when n was too small to see it.
        gallery: how many images each was compared to.
    """

    name: str
    threshold: Estimate
    false_positives: float
    gallery: int

    def metric(self, embedder: str) -> Metric:
        """This threshold as the one of an embedder; the interval's upper end, so that doubt means no copy."""
        source = (
            f"null {self.name}: {self.false_positives:.2g} of {self.threshold.n} images that are no copies exceed "
            f"{self.threshold} against {self.gallery} images; upper end taken"
        )
        return Metric(embedder=embedder, threshold=self.threshold.high, source=source)


def null(
    best: ArrayLike, *, name: str, gallery: int, false_positives: float = FALSE_POSITIVES, level: float = 0.95
) -> Null:
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
    return Null(name=name, threshold=threshold, false_positives=share, gallery=gallery)


def from_samples(samples: Tensor, train: Tensor, *, mirrored: Tensor | None = None, name: str = "base samples") -> Null:
    """From embeddings [N, D] of images that cannot be copies: the base model's samples, or held-out images.

    Args:
        samples: their embeddings.
        train: embeddings of the training images, [M, D].
        mirrored: embeddings of the mirrored samples, when matching will be mirror-aware too.
        name: "base samples" or "held-out".
    """
    best = search(samples, train)[0][:, 0]
    if mirrored is not None:
        best = torch.maximum(best, search(mirrored, train)[0][:, 0])
    return null(best.tolist(), name=name, gallery=len(train))


def from_neighbours(train: Tensor, groups: Sequence[int], *, mirrored: Tensor | None = None) -> Null:
    """From the training images themselves: each one's best match outside its own duplicate group.

    Args:
        train: embeddings, [M, D].
        groups: duplicate group of each; all different when there are no duplicates.
        mirrored: embeddings of the mirrored training images.

    Raises:
        ValueError: one group holds every image, so nothing is left to compare to.
    """
    return null(
        best_outside(train, train, groups, groups, mirrored=mirrored), name="train-train", gallery=len(train) - 1
    )


def best_outside(
    queries: Tensor, known: Tensor, own: Sequence[int], groups: Sequence[int], *, mirrored: Tensor | None = None
) -> list[float]:
    """Best similarity of each query to a known image of another group.

    Args:
        queries: [N, D]; `own` is the group of each.
        known: [M, D]; `groups` is the group of each.
        mirrored: embeddings of the mirrored queries.
    """
    mine, theirs = torch.as_tensor(own), torch.as_tensor(groups)
    if len(mine) != len(queries) or len(theirs) != len(known):
        raise ValueError(f"{len(mine)} and {len(theirs)} groups given for {len(queries)} and {len(known)} images")
    largest = int(torch.unique(theirs, return_counts=True)[1].max())
    if largest == len(known):
        raise ValueError(f"all {len(known)} images are in one duplicate group: no other image to compare to")
    best = torch.full((len(queries),), -math.inf)
    for vectors in (queries, mirrored) if mirrored is not None else (queries,):
        values, indices = search(vectors, known, k=largest + 1)
        allowed = theirs[indices.cpu()] != mine[:, None]
        best = torch.maximum(best, values.cpu().masked_fill(~allowed, -math.inf).max(1).values)
    return best.tolist()
