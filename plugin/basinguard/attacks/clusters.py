"""Samples that agree with each other: how somebody without the training images tells a memory from an invention.

Source: Carlini et al., arXiv 2301.13188, section 4.2 (cliques of mutually close samples); FineXtract, arXiv 2410.03039.
Cliques are grown greedily, the best connected sample first: the largest clique of a graph is not worth its price here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 3  # samples in a cluster


def clusters(similarity: ArrayLike, threshold: float, least: int = LEAST) -> list[list[int]]:
    """Groups of samples that are all at least `threshold` alike, the largest first; no sample is in two.

    Args:
        similarity: of every two samples, [N, N], symmetric.
        threshold: from which on two samples show the same.
        least: samples in a group.

    Example:
        >>> clusters([[1, 0.9, 0.9, 0], [0.9, 1, 0.9, 0], [0.9, 0.9, 1, 0.9], [0, 0, 0.9, 1]], 0.5)
        [[0, 1, 2]]
    """
    alike = np.asarray(similarity, float) >= threshold
    np.fill_diagonal(alike, False)
    free = np.ones(len(alike), bool)
    cliques: list[list[int]] = []
    while True:
        clique = _clique(alike & free & free[:, None])
        if len(clique) < least:
            return sorted(cliques, key=len, reverse=True)
        cliques.append(sorted(clique))
        free[clique] = False


def _clique(alike: NDArray) -> list[int]:
    """Of the best connected sample, grown by whoever is connected to all of it."""
    degree = alike.sum(1)
    first = int(degree.argmax())
    if not degree[first]:
        return []
    clique = [first]
    for other in np.argsort(-degree, kind="stable").tolist():
        if other != first and alike[other, clique].all():
            clique.append(other)
    return clique


def centre(similarity: ArrayLike, cluster: list[int]) -> int:
    """The sample that is most alike to the others of its cluster."""
    within = np.asarray(similarity, float)[np.ix_(cluster, cluster)]
    return cluster[int(within.mean(1).argmax())]
