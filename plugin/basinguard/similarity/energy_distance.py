"""Energy distance: how far two sets of feature vectors are from one distribution, unbiased, with weights.

Weights are what a bootstrap needs: row r of `[R, n]` weights is one resampling, and all of them cost one product of
matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, Euclidean, pairs without the diagonal: 0 in the mean for equal distributions.

    Args:
        x, y: feature vectors, [n, D] and [m, D], at least two of each.

    Raises:
        ValueError: shapes that do not fit, or fewer than two of either.

    Source: Szekely and Rizzo, J. Statist. Plann. Inference 143 (2013), eq. 2; the U-statistic of their section 4.

    Example:
        >>> energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [6.0]]))
        6.0
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"features {list(x.shape)} and {list(y.shape)} given; expected [n, D] and [m, D], two rows or more"
        )
    within = [mean_apart(pair_distances(v, v), _even(v), torch.arange(len(v))) for v in (x, y)]
    between = mean_between(pair_distances(x, y), _even(x), _even(y))
    return float(2 * between - within[0] - within[1])


def pair_distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances, [n, m] float64."""
    return torch.cdist(x.double(), y.double())


def mean_between(distances: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted means of distances [n, m] by weights [R, n] and [R, m]: [R]."""
    total = ((rows @ distances) * columns).sum(1)
    return total / (rows.sum(1) * columns.sum(1))


def mean_apart(distances: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """Weighted means of distances [n, n] over pairs of different units, by weights [R, n]: [R].

    A unit is what is drawn independently, [n]: of samples their prompt, since two seeds of one prompt are closer than
    two draws of the whole; where every row is its own unit, this leaves out the diagonal.
    """
    apart = (unit[:, None] != unit).double()
    return ((weights @ (distances * apart)) * weights).sum(1) / ((weights @ apart) * weights).sum(1)


def _even(x: Tensor) -> Tensor:
    return torch.ones(1, len(x), dtype=torch.float64)
