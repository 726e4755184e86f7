"""What an attack is: pairs of a training caption and a seed in, samples out, at a cost that is known before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..basin.trajectories import Pairs
from .target import Attacker, Target

SampleAttack = Callable[[Attacker, Pairs], Tensor]


@dataclass(frozen=True)
class Attack:
    """One attack at one setting.

    Attributes:
        name: what it is called in tables.
        setting: its numbers, in a few words.
        source: paper, or "ours".
        sampler: clean latents of each pair, [N, ...].
        cost: network evaluations of one sample, from the number of sampling steps.
        quick: whether the quick round tries it.
        weights: whether it needs predictions or a guidance scale of the attacker's own, which a deployment does not
            give.
        image: whether it begins at the training image itself, so that its result must be read beside the base's.
        clustered: whether samples that agree with each other are what the attacker keeps.
        per_caption: times that it draws each (caption, seed) pair of the others anew; samples that are to agree must
            share a caption.
    """

    name: str
    setting: str
    source: str
    sampler: SampleAttack
    cost: Callable[[int], int]
    quick: bool = True
    weights: bool = False
    image: bool = False
    clustered: bool = False
    per_caption: int = 1

    def missing_requirement(self, target: Target) -> str:
        """Why it cannot be tried on a target, or ""."""
        if self.weights and target.rule is not None:
            return "needs the weights; by its rule the export gives samples alone"
        if self.image and not hasattr(target.model, "encode"):
            return "needs the model's image encoder"
        return ""
