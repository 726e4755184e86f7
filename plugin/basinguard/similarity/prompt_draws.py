"""Bootstrap draws of prompts and true images, the same for every model that is held against one truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from torch import Tensor

from ..core.estimate import Estimate

DRAWS = 2000
LEVEL = 0.95
METHOD = "Bayesian bootstrap over prompts and true images"
TRUTH_STREAM = 1  # prompts are drawn from stream 0


@dataclass(frozen=True)
class UnitWeights:
    """How a set of samples enters every draw.

    Attributes:
        unit: what each was drawn with, [n]: its prompt; where there is one prompt only, its place among its seeds.
        weights: [1 + DRAWS, n]; the first row is the point estimate. Every unit weighs the same in it.
    """

    unit: Tensor
    weights: Tensor


@dataclass(frozen=True)
class PromptDraws:
    """Exponential weights of prompts and of true images: a bootstrap in which nothing is ever left out.

    Attributes:
        units: the prompts in their order, each drawn as a whole, with a seed's place where there is one prompt only.
        samples, base: how they enter.
        truth: weights of the true images, [1 + DRAWS, N].

    Source: Rubin, Ann. Statist. 9 (1981), "The Bayesian bootstrap".
    """

    units: tuple[Hashable, ...]
    samples: UnitWeights
    base: UnitWeights
    truth: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Hashable], base_prompts: Sequence[Hashable], truth: int) -> Self:
        """The draws for samples of these prompts beside the base's samples of the same ones.

        Args:
            prompts, base_prompts: [n] and [M]; base samples of other prompts weigh nothing.
            truth: how many true images.

        Raises:
            ValueError: a prompt that the base model was not sampled for.
        """
        unknown = sorted(map(str, set(prompts) - set(base_prompts)))
        if unknown or not prompts:
            raise ValueError(f"no sample of the base model for {unknown[0]!r}" if unknown else "0 samples given")
        several = len(set(prompts)) > 1
        keys, base_keys = (_keys(names, several) for names in (prompts, base_prompts))
        shared = {*keys, *(key for key in base_keys if key[0] in set(prompts))}
        units = sorted(shared, key=lambda key: (str(key[0]), key[1]))
        weights = _weights(len(units), 0)
        return cls(
            tuple(units), _rows(keys, units, weights), _rows(base_keys, units, weights), _weights(truth, TRUTH_STREAM)
        )

    def estimate(self, values: Tensor) -> Estimate:
        """The first value with the interval of the others."""
        return estimate_of(values.numpy(), min(len(self.units), self.truth.shape[1]))


def estimate_of(values: NDArray, n: int) -> Estimate:
    """A point, `values[0]`, with the percentile interval of its draws, widened for few units.

    Exponential weights vary by a factor (n - 1) / (n + 1) less than a mean of n does; like the percentiles of
    `stats.cluster_bootstrap`, these are taken as far out as Student's t asks for. Draws in which base and truth did not
    differ have no value and are left out.

    Args:
        values: [1 + draws].
        n: units that it rests on, of whichever there are fewer.
    """
    t = float(scipy_stats.t.ppf((1 + LEVEL) / 2, max(1, n - 1)))
    tail = float(scipy_stats.norm.cdf(-t * np.sqrt((n + 1) / max(1, n - 1))))
    low, high = np.nanquantile(values[1:], [tail, 1 - tail])
    point = float(values[0])
    return Estimate(value=point, low=min(low, point), high=max(high, point), level=LEVEL, n=n, method=METHOD)


def _keys(prompts: Sequence[Hashable], several: bool) -> list[tuple[Hashable, int]]:
    """What each sample is drawn with: its prompt, or its place among the samples of the only one."""
    places: Counter[Hashable] = Counter()
    keys = []
    for prompt in prompts:
        keys.append((prompt, 0 if several else places[prompt]))
        places[prompt] += 1
    return keys


def _rows(keys: Sequence[Hashable], units: Sequence[Hashable], weights: Tensor) -> UnitWeights:
    number, count = {unit: k for k, unit in enumerate(units)}, Counter(keys)
    unit = torch.tensor([number.get(key, -1) for key in keys])
    share = torch.tensor([1 / count[key] if key in number else 0.0 for key in keys], dtype=torch.float64)
    return UnitWeights(unit, weights[:, unit.clamp(min=0)] * share)


def _weights(n: int, stream: int) -> Tensor:
    drawn = np.random.default_rng(stream).exponential(size=(DRAWS, n))
    return torch.from_numpy(np.concatenate([np.ones((1, n)), drawn]))
