"""How different are samples from each other? A guard that collapses them must not look good."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.estimate import Estimate
from ..core.stats import cluster_bootstrap


def vendi(embeddings: Tensor) -> float:
    """The effective number of different images among n: 1 when all are the same, n when all are orthogonal.

    Args:
        embeddings: unit vectors, [n, D].

    Returns:
        exp of the entropy of the eigenvalues of K / n, K the cosine kernel; in [1, n]. For an interval, use
        `vendi_per_prompt`.

    Source: Friedman and Dieng, arXiv 2210.02410, definition 3.1.

    Example:
        >>> round(vendi(torch.eye(4)), 6), round(vendi(torch.ones(4, 1)), 6)
        (4.0, 1.0)
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"embeddings {list(embeddings.shape)} given; expected [n, D] with n >= 1")
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError("embeddings with NaN or infinite values given; embed the images again")
    v = embeddings.double()
    gram = v @ v.T if len(v) <= v.shape[1] else v.T @ v
    eigenvalues = torch.linalg.eigvalsh(gram / len(v)).clamp(min=0)
    return float(torch.exp(torch.special.entr(eigenvalues).sum()))


def vendi_per_prompt(embeddings: Tensor, prompts: list[int]) -> Estimate:
    """Mean Vendi score over prompts, each over its own seeds; prompts are drawn again for the interval.

    Raises:
        ValueError: a prompt with a single sample has no diversity to measure.
    """
    groups = _groups(embeddings, prompts)
    return cluster_bootstrap([vendi(g) for g in groups], np.arange(len(groups)))


def pairwise(embeddings: Tensor, prompts: list[int]) -> Estimate:
    """Mean of 1 - similarity over pairs of seeds of the same prompt, averaged over prompts; 0 = all the same.

    Raises:
        ValueError: a prompt with a single sample has no pair.
    """
    groups = _groups(embeddings, prompts)
    values = [1 - (float((g @ g.T).sum()) - len(g)) / (len(g) * (len(g) - 1)) for g in groups]
    return cluster_bootstrap(values, np.arange(len(groups)))


def _groups(embeddings: Tensor, prompts: list[int]) -> list[Tensor]:
    if len(prompts) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings and {len(prompts)} prompts given")
    owner = torch.as_tensor(prompts)
    groups = [embeddings[owner == name] for name in owner.unique()]
    if not groups or min(map(len, groups)) < 2:
        raise ValueError("diversity needs at least 2 samples (seeds) of each prompt")
    return groups
