"""What a fine-tune taught a model: 0 is the base model, 1 is true images of what was taught, on held-out prompts.

    taught(S) = 1 - sqrt(E(S, T) / E(B, T))

S are samples, B the base model's samples of the same prompts, T true images, E the unbiased energy distance in a group
of features. The groups of a feature set are averaged, each by how far the base model is from the truth in it, so that
one in which there was nothing to learn cannot blow up; of several feature sets ("rulers") the smallest counts, since
each forgives what another sees. Without the root half base and half truth would get 0.75. The root keeps the sign of an
unbiased distance below 0, so that true images get 1 in the mean and not always less. Copies count as nothing that was
taught: the value is multiplied by the share of samples that are none.

It sees neither whether a caption is followed (that is alignment's) nor variety beyond what the distance notices.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.estimate import Estimate
from .feature_sets import FeatureSet, features_of
from .feature_space import FeatureSpace
from .prompt_draws import PromptDraws, estimate_of

PERMUTATIONS = 499
DETECTABLE = 0.05  # level of the test that base and truth differ at all
WHOLE = ""  # a ruler beside its groups
FEWEST_PROMPTS = 2  # of several
FEWEST = 3  # true images and base samples; with fewer no permutation reaches that level


def taught_formula(to_truth: Tensor, base_to_truth: Tensor) -> Tensor:
    """1 - sqrt(E(S, T) / E(B, T)), the root with its sign.

    Example:
        >>> taught_formula(torch.tensor([0.0, 1.0, 4.0]), torch.tensor(4.0)).tolist()
        [1.0, 0.5, 0.0]
    """
    return 1 - signed_root(to_truth) / signed_root(base_to_truth)


def signed_root(x: Tensor) -> Tensor:
    """sign(x) sqrt(|x|)."""
    return x.sign() * x.abs().sqrt()


@dataclass(frozen=True)
class Taught:
    """What was taught, as one model's samples show it.

    Attributes:
        value: the smallest of the rulers, net of copies; None where it cannot be resolved.
        rulers: each ruler's value, net of copies, by name; of those that tell base and truth apart.
        groups: what is behind them, net of copies, by ruler and group.
        copies: share of the samples that are copies, every prompt weighing the same.
        reason: why there is no value, or why a ruler is missing; "" otherwise.
        replicas: the value in every draw of the bootstrap, for `difference`; empty where there is no value.
        units: what was drawn independently; two results can be compared where these are the same.
        n: units or true images, of whichever there are fewer.
    """

    value: Estimate | None
    rulers: Mapping[str, Estimate]
    groups: Mapping[str, Mapping[str, Estimate]]
    copies: float
    reason: str = ""
    replicas: NDArray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    units: tuple[Hashable, ...] = field(default=(), repr=False)
    n: int = 0

    @property
    def resolved(self) -> bool:
        """Whether base and truth can be told apart, so that there is a value."""
        return self.value is not None

    def __str__(self) -> str:
        if self.value is None:
            return f"cannot be resolved: {self.reason}"
        return f"{self.value} (" + ", ".join(f"{name} {ruler.value:.2f}" for name, ruler in self.rulers.items()) + ")"


class TaughtRuler:
    """Truth and base model, measured once; then any number of models are held against them.

    Args:
        truth: true images, [N, 3, H, W] in [0, 1], after a pass through the model's own VAE: without it the blur of
            the VAE is as far from the files as the base model is.
        base: the base model's samples of held-out prompts, [M, 3, H, W].
        prompts: the prompt of each of them, [M]: anything that tells prompts apart.
        feature_sets: the rulers.

    Attributes:
        p_values: of "base and truth look the same", by ruler; above `DETECTABLE` a ruler says nothing.

    Raises:
        ValueError: lengths that do not fit, or no feature set.
    """

    def __init__(
        self, truth: Tensor, base: Tensor, prompts: Sequence[Hashable], feature_sets: Sequence[FeatureSet]
    ) -> None:
        if len(base) != len(prompts) or not feature_sets:
            raise ValueError(
                f"{len(base)} base samples, {len(prompts)} prompts and {len(feature_sets)} feature sets given; "
                "expected a prompt for each sample and at least one feature set"
            )
        self.feature_sets, self.prompts, self.n = tuple(feature_sets), tuple(prompts), len(truth)
        self.spaces = {feature_set.name: _spaces(feature_set, truth, base) for feature_set in feature_sets}
        self.p_values = {name: _p_value(spaces, self.prompts, self.n) for name, spaces in self.spaces.items()}

    def measure(
        self, samples: Tensor, prompts: Sequence[Hashable], copies: Sequence[bool] | Tensor | None = None
    ) -> Taught:
        """What these samples show of what was taught.

        Args:
            samples: [n, 3, H, W] in [0, 1].
            prompts: the prompt of each, [n], all of them among the base's.
            copies: which samples are copies, [n]; None for none.

        Raises:
            ValueError: a prompt that the base model was not sampled for, or lengths that do not fit.
        """
        copied = torch.zeros(len(samples)) if copies is None else torch.as_tensor(copies)
        if not len(samples) == len(prompts) == len(copied):
            raise ValueError(f"{len(samples)} samples, {len(prompts)} prompts and {len(copied)} marks of copies given")
        draws = PromptDraws.of(prompts, self.prompts, self.n)
        weights = draws.samples.weights
        free = (weights * (1 - copied.double())).sum(1) / weights.sum(1)
        values = {f.name: self._values(f, samples, draws, free) for f in self.feature_sets if self._resolves(f.name)}
        whole = [rows[WHOLE] for rows in values.values()]
        smallest = torch.stack(whole).min(0).values if whole else torch.empty(0)
        estimates = {name: {g: draws.estimate(v) for g, v in rows.items()} for name, rows in values.items()}
        return Taught(
            value=draws.estimate(smallest) if whole else None,
            rulers={name: rows.pop(WHOLE) for name, rows in estimates.items()},
            groups=estimates,
            copies=float(1 - free[0]),
            reason=self.reason,
            replicas=smallest.numpy(),
            units=draws.units,
            n=min(len(draws.units), self.n),
        )

    @property
    def reason(self) -> str:
        """Why rulers are left out; "" where none is."""
        lost = [f"{name}: p = {p:.2f}" for name, p in self.p_values.items() if not self._resolves(name)]
        if not lost:
            return ""
        return (
            f"the base model's samples of {len(set(self.prompts))} prompts cannot be told from {self.n} true images at "
            f"level {DETECTABLE:g} ({'; '.join(lost)}): give more true images or more held-out prompts"
        )

    def _resolves(self, name: str) -> bool:
        return self.p_values[name] <= DETECTABLE

    def _values(self, feature_set: FeatureSet, samples: Tensor, draws: PromptDraws, free: Tensor) -> dict[str, Tensor]:
        """The ruler as a whole, and its groups where those have a value of their own; net of copies, [R] each."""
        features, roots, base = features_of(samples, feature_set), {}, {}
        for group, space in self.spaces[feature_set.name].items():
            distance = space.distance(space.standardise(features[group]), draws.samples, draws.truth)
            roots[group] = signed_root(distance)
            base[group] = signed_root(space.distance(space.base, draws.base, draws.truth))
        values = {group: _value(roots[group], base[group]) for group in roots if base[group][0] > 0}
        values[WHOLE] = _value(sum(roots.values(), torch.zeros(())), sum(base.values(), torch.zeros(())))
        return {group: value * free for group, value in values.items()}


def measure_shared(ruler: TaughtRuler, samples: Tensor, prompts: Sequence[Hashable], copies: Tensor) -> Taught | None:
    """`TaughtRuler.measure` of those samples whose prompt the base model was sampled for; None where they are too few.

    Of several prompts at least `FEWEST_PROMPTS`: the samples of one say nothing about how far others lie apart.
    """
    shared = set(ruler.prompts)
    rows = [row for row, prompt in enumerate(prompts) if prompt in shared]
    if len({prompts[row] for row in rows}) < min(FEWEST_PROMPTS, len(shared)):
        return None
    return ruler.measure(samples[rows], [prompts[row] for row in rows], copies[rows])


def taught_difference(first: Taught, second: Taught) -> Estimate:
    """`first` less `second`, paired: both were drawn again with the same prompts and true images.

    Raises:
        ValueError: a result without a value, or results over different prompts.
    """
    if first.value is None or second.value is None:
        raise ValueError(f"there is no difference where a value is missing: {first.reason or second.reason}")
    if first.units != second.units:
        raise ValueError(
            f"results over {len(first.units)} and {len(second.units)} prompts, not the same ones, cannot be paired"
        )
    return estimate_of(first.replicas - second.replicas, first.n)


def _value(root: Tensor, base: Tensor) -> Tensor:
    """1 - root / base, without a value where the base is at the truth."""
    return torch.where(base > 0, 1 - root / base, torch.nan)


def _spaces(feature_set: FeatureSet, truth: Tensor, base: Tensor) -> dict[str, FeatureSpace]:
    true, drawn = features_of(truth, feature_set), features_of(base, feature_set)
    return {group: FeatureSpace(true[group], drawn[group]) for group in true}


def _p_value(spaces: Mapping[str, FeatureSpace], prompts: Sequence[Hashable], truth: int) -> float:
    """Of "base and truth look the same": permutation test of the summed distances, one base sample a prompt.

    Where there is a single prompt, all of its samples. Too few of either is no evidence: 1.
    """
    first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
    rows = torch.tensor(sorted(first.values()) if len(first) > 1 else list(range(len(prompts))))
    if min(len(rows), truth) < FEWEST:
        return 1.0
    order = np.random.default_rng(0).random((PERMUTATIONS, len(rows) + truth)).argsort(1)
    actual = np.arange(len(rows) + truth)[None]
    masks = torch.from_numpy(np.concatenate([actual, order]) < len(rows))
    total = torch.stack([space.permuted(rows, masks) for space in spaces.values()]).sum(0)
    return float((total >= total[0] - 1e-12).double().mean())
