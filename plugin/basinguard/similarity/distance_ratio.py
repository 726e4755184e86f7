"""Copies without a threshold: the nearest training image is much nearer than the next one that is not its duplicate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .embedder import Embedder
from .matching import search

COPY_RATIO = 1 / 3


def distance_ratio(
    samples: Tensor, train: Tensor, groups: Sequence[int] | None = None, embedder: Embedder | None = None
) -> Tensor:
    """Distance to the nearest training image over the distance to the nearest one of another duplicate group, [N].

    Small means copy; `COPY_RATIO` is the value in use. A set with unmarked duplicates hides copies, which is why groups
    are asked for.

    Args:
        samples: embeddings, [N, D], unit vectors.
        train: embeddings, [M, D].
        groups: duplicate group of each training image; None when all are different.
        embedder: made both, and compares them; None: by dot products.

    Returns:
        Ratios in [0, 1]; 1 when both distances are zero.

    Raises:
        ValueError: fewer than two groups.

    Source: the ratio l2(x, NN1) / l2(x, NN2) < 1/3 of Yoon et al. (2023) and Gu et al., arXiv 2310.02664, section 2.

    Example:
        >>> train = torch.eye(3)
        >>> round(float(distance_ratio(train[:1], train)[0]), 3)
        0.0
    """
    owner = torch.arange(len(train)) if groups is None else torch.as_tensor(groups)
    if len(owner) != len(train):
        raise ValueError(f"{len(owner)} groups given for {len(train)} training images")
    sizes = torch.unique(owner, return_counts=True)[1]
    if len(sizes) < 2:
        raise ValueError(f"{len(train)} training images in {len(sizes)} group(s) given; the ratio needs 2 groups")
    values, indices = search(samples, train, embedder, k=int(sizes.max()) + 1)
    neighbours = owner[indices.cpu()]
    second = values.cpu().masked_fill(neighbours == neighbours[:, :1], -math.inf).max(1).values
    near, far = (_distance(v) for v in (values[:, 0].cpu(), second))
    return torch.where(far > 0, near / far.clamp(min=1e-12), torch.ones_like(near))


def _distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors; what rounding leaves below 1e-3 is nothing."""
    distance = (2 - 2 * similarity).clamp(min=0).sqrt()
    return torch.where(distance < 1e-3, torch.zeros_like(distance), distance)
