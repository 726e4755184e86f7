"""One group of features in which base, truth and samples are held against each other."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .energy_distance import mean_apart, mean_between, pair_distances
from .prompt_draws import UnitWeights

SMALLEST_DEVIATION = 1e-6  # a feature that is the same everywhere says nothing


class FeatureSpace:
    """Features standardised by mean and deviation of truth and base together; lengths in their mean distance.

    Args:
        truth, base: features, [N, D] and [M, D].
    """

    def __init__(self, truth: Tensor, base: Tensor) -> None:
        both = torch.cat([truth, base]).double()
        deviation = both.std(0, correction=0)
        self.varied = deviation > SMALLEST_DEVIATION
        self.mean, self.deviation = both.mean(0)[self.varied], deviation[self.varied]
        self.truth, self.base = self.standardise(truth), self.standardise(base)
        self.length = max(float(pair_distances(self.truth, self.base).mean()), SMALLEST_DEVIATION)

    def standardise(self, features: Tensor) -> Tensor:
        """Features [n, D] as this space counts them."""
        return (features.double()[:, self.varied] - self.mean) / self.deviation

    @cached_property
    def truth_distances(self) -> Tensor:
        """Between true images, [N, N]."""
        return pair_distances(self.truth, self.truth)

    def distance(self, samples: Tensor, rows: UnitWeights, truth_weights: Tensor) -> Tensor:
        """Unbiased energy distance of samples to the truth, [R].

        Args:
            samples: standardised, [n, D].
            rows: how they enter.
            truth_weights: [R, N].
        """
        between = mean_between(pair_distances(samples, self.truth), rows.weights, truth_weights)
        within = mean_apart(pair_distances(samples, samples), rows.weights, rows.unit)
        true = mean_apart(self.truth_distances, truth_weights, torch.arange(len(self.truth)))
        return (2 * between - within - true) / self.length

    def permuted(self, base_rows: Tensor, first: Tensor) -> Tensor:
        """The same distance between base and truth after they were pooled and divided anew, [P].

        Args:
            base_rows: of the base, by index, [m].
            first: which of the m + N pooled rows stand for the base, [P, m + N] bool.
        """
        pooled = torch.cat([self.base[base_rows], self.truth])
        distances, one, second = pair_distances(pooled, pooled), torch.arange(len(pooled)), (~first).double()
        within = mean_apart(distances, first.double(), one) + mean_apart(distances, second, one)
        return (2 * mean_between(distances, first.double(), second) - within) / self.length
