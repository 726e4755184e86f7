"""What an attack got out: the samples that are copies by the copy detector, how many, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..basin.trajectories import Pairs
from ..calibration.trial import calibration_pairs
from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..core.metric import Match
from ..diffusion.sampling import draw_noise
from ..guard.guard import Guard
from ..similarity.embedder import Embedder, embed_all
from ..similarity.matching import search
from .attack import Attack
from .clusters import centre, clusters
from .target import Attacker, Target

PER_ATTACK = 10_000  # seeds that an attack has of its own


@dataclass(frozen=True)
class Extraction:
    """An attack on a target.

    Attributes:
        attack, target: which.
        copies: share of samples that are copies, with its interval; captions are clusters.
        images: training images that came back, by index.
        evaluations: rows that went through a network.
        samples: every sample, [N, 3, H, W] in [0, 1].
        matches: the nearest training image of each.
        copied: whether each sample is a copy, [N] bool.
        note: what the attacker could tell without the training images; "" where nothing.
    """

    attack: Attack
    target: str
    copies: Estimate
    images: tuple[int, ...]
    evaluations: int
    samples: Tensor
    matches: Sequence[Match]
    copied: Tensor
    note: str = ""

    @property
    def extracted(self) -> Tensor:
        """The samples that are copies, [K, 3, H, W]."""
        return self.samples[self.copied]


def attack_pairs(attacker: Attacker, number: int, samples: int, per_caption: int = 1) -> Pairs:
    """Every caption as often as any other, with seeds that belong to the attack's number alone.

    Args:
        attacker: knows the captions.
        number: of the attack.
        samples: of an attack that draws each pair once.
        per_caption: how often this one draws each, with a seed of its own every time.
    """
    shape, first = attacker.target.model.latent_shape, seed_table.ATTACK + PER_ATTACK * number
    once = calibration_pairs(len(attacker.captions), samples, shape, first)
    if per_caption == 1:
        return once
    prompt = once.prompt.repeat_interleave(per_caption)
    seed = torch.arange(first, first + len(prompt))
    return Pairs(prompt, seed, draw_noise(seed.tolist(), shape))


@torch.no_grad()
def extract(attack: Attack, target: Target, guard: Guard, pairs: Pairs) -> Extraction:
    """Tries an attack and judges what came out.

    Raises:
        ValueError: the attack cannot be tried on this target.
    """
    missing = attack.missing_requirement(target)
    if missing:
        raise ValueError(f"{attack.name} on {target.name}: {missing}")
    attacker = Attacker(target, guard)
    images = target.model.decode(attack.sampler(attacker, pairs))
    matches = guard.matches(images)
    copied = guard.copy_detector.copied(matches)
    return Extraction(
        attack,
        target.name,
        copies=stats.rate(copied, pairs.prompt),
        images=tuple(sorted({match.index for match, copy in zip(matches, copied.tolist(), strict=True) if copy})),
        evaluations=attacker.count.total,
        samples=images,
        matches=matches,
        copied=copied,
        note=cluster_note(guard, images, copied) if attack.clustered else "",
    )


def cluster_note(guard: Guard, images: Tensor, copied: Tensor) -> str:
    """What the attacker would keep: centres of samples that agree with each other, and how many of them are copies."""
    similarity = likeness(images, guard.embedder).numpy()
    groups = clusters(similarity, guard.embedder.metric.threshold)
    right = sum(bool(copied[centre(similarity, group)]) for group in groups)
    return f"{len(groups)} clusters, {right} of their centres are copies"


def likeness(images: Tensor, embedder: Embedder) -> Tensor:
    """Similarity of every two images by the copy detector's own measure, [N, N], symmetric."""
    vectors = embed_all(images, embedder)
    values, places = search(vectors, vectors, embedder, k=len(vectors))
    square = torch.zeros(len(vectors), len(vectors)).scatter(1, places, values.float())
    return torch.maximum(square, square.T)
