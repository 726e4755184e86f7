"""The (prompt, seed) pairs that every mitigation samples, and the images that their quality is measured against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import pairs_of
from ..core import seeds as seed_table
from ..core.spread import spread
from ..pipelines.latent_model import LatentModel
from ..similarity.clip_score import ClipScore
from ..similarity.embedder import embed_all
from ..similarity.kernel_distance import FEWEST, KernelDistance
from ..training.data import ImageFolder
from .held_out import SAMPLES, HeldOut, held_out
from .settings import ComparisonOptions
from .testbed import Batch, Testbed


@dataclass(frozen=True)
class ComparedPairs:
    """Prompts and seeds of a comparison.

    Attributes:
        batch: every pair.
        cluster: which prompt each pair belongs to.
        held_out: prompts that were not trained on, and what their samples are held against.
        quality: distance of samples to images that were not trained on.
    """

    batch: Batch
    cluster: tuple[int, ...]
    held_out: HeldOut | None = None
    quality: KernelDistance | None = None


def pairs_of_comparison(testbed: Testbed, options: ComparisonOptions) -> tuple[ComparedPairs, tuple[str, ...]]:
    """The pairs that every mitigation samples, what quality is measured against, and the prompts."""
    prompts, cluster, batch = compared_batch(testbed, options)
    apart = seed_table.VERIFICATION + len(cluster)
    if options.heldout is None:
        return ComparedPairs(
            batch, cluster, held_out(testbed, (), None, apart), quality=_to_base(testbed, prompts)
        ), prompts
    others = ImageFolder(str(options.heldout), resolution=testbed.model.resolution)
    others.setup("compare")
    captions, pixels = tuple(caption for _, caption in others.items), others.all_pixels()
    quality = _to_heldout(testbed, prompts, captions, pixels) or _to_base(testbed, prompts)
    unseen = _spread(tuple(c for c in captions if c not in testbed.guard.training.captions), SAMPLES)
    return ComparedPairs(batch, cluster, held_out(testbed, unseen, pixels, apart), quality), prompts


def compared_batch(testbed: Testbed, options: ComparisonOptions) -> tuple[tuple[str, ...], tuple[int, ...], Batch]:
    """The prompts, the prompt of each pair, and the pairs."""
    prompts = _spread(tuple(dict.fromkeys(testbed.guard.training.captions)), options.captions)
    cluster = tuple(k for k in range(len(prompts)) for _ in range(options.per_caption))
    seeds = tuple(seed_table.VERIFICATION + i for i in range(len(cluster)))
    return prompts, cluster, Batch(tuple(prompts[k] for k in cluster), seeds)


def _to_heldout(
    testbed: Testbed, prompts: tuple[str, ...], captions: tuple[str, ...], pixels: Tensor
) -> KernelDistance | None:
    """Distance to held-out images of the very prompts where each has as many; else to all; None where they are few."""
    rows = [i for i, caption in enumerate(captions) if caption in prompts]
    each = {captions.count(prompt) for prompt in prompts}
    if len(each) == 1 and len(rows) >= FEWEST:
        groups = torch.tensor([prompts.index(captions[i]) for i in rows])
        return _distance(testbed, pixels[rows], "held-out images of the same prompts", groups)
    return _distance(testbed, pixels, "held-out images") if len(pixels) >= FEWEST else None


def _to_base(testbed: Testbed, prompts: tuple[str, ...]) -> KernelDistance | None:
    """Distance to what the base model draws of the same prompts; None without a base."""
    if testbed.base is None:
        return None
    each = max(4, math.ceil(FEWEST / len(prompts)))
    seeds = range(seed_table.COMPARISON_REFERENCE, seed_table.COMPARISON_REFERENCE + each * len(prompts))
    model = LatentModel(testbed.base)
    reference = pairs_of(len(prompts), seeds, each, model.latent_shape)
    probe = testbed.guard.guided_model(model, prompts)
    ends = run_plain(probe, reference).ends
    return _distance(testbed, model.decode(ends), "samples of the base model", reference.prompt)


def _distance(testbed: Testbed, images: Tensor, what: str, groups: Tensor | None = None) -> KernelDistance:
    """In the space of the model that scores captions; without one, of the embedder that finds copies."""
    embedder = testbed.guard.embedder
    scorer = getattr(testbed.guard.score_alignment, "__self__", None)
    if isinstance(scorer, ClipScore):
        return KernelDistance.to_images(scorer.embed_images, images, name=scorer.name, what=what, groups=groups)
    return KernelDistance.to_images(
        lambda batch: embed_all(batch, embedder), images, name=embedder.name, what=what, groups=groups
    )


def _spread(items: tuple[str, ...], count: int | None) -> tuple[str, ...]:
    """`count` of the items, evenly spread; all when there are no more."""
    return items if count is None else tuple(items[i] for i in spread(len(items), count))
