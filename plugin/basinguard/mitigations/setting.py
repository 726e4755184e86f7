"""What a comparison is made on: the model on its bench, the pairs that every method samples, and the run's identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import basin
from ..basin.trajectories import pairs_of
from ..core import seeds as seed_table
from ..core.metric import Metric
from ..core.record import read_record
from ..core.schema import Schema
from ..exports.fingerprints import dataset_sha256, weights_sha256
from ..guard.guard import Guard
from ..guard.plan import ProbePlan
from ..guard.training_set import TrainingSet
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline, require_stable_diffusion
from ..similarity.clip_score import ClipScore
from ..similarity.embedder import embed_all
from ..similarity.kernel_distance import FEWEST, KernelDistance
from ..similarity.structure import Structure
from ..training.data import ImageFolder
from ..training.shipping import alignment_for
from .base import Batch, Bench
from .measure import Pairs


class Settings(Schema):
    """What two points must share to stand in one table."""

    model: str
    base: str | None
    data: str
    heldout: str | None
    weights_sha256: str
    dataset_sha256: str
    metric: Metric
    aligned_by: str
    captions: int
    per_caption: int
    first_seed: int
    timesteps: int
    scale: float


@dataclass(frozen=True)
class Plans:
    """How much to sample.

    Attributes:
        captions: how many training captions, spread evenly over the set; None for all.
        per_caption: seeds for each.
        first_look: each method at its default strength alone.
        timesteps: sampling steps.
        scale: guidance scale of ordinary CFG.
        costs: also measure time and memory of each method; not at a first look.
    """

    captions: int | None = None
    per_caption: int = 4
    timesteps: int = 50
    scale: float = 7.5
    first_look: bool = False
    costs: bool = True

    def __post_init__(self) -> None:
        if self.per_caption < 1 or self.timesteps < 1 or (self.captions is not None and self.captions < 1):
            raise ValueError(f"{self}: expected at least 1 caption, 1 seed each and 1 sampling step")


def bench_of(
    model: str,
    data: Path,
    base: str | None,
    checkpoints: Sequence[Path],
    plans: Plans,
    align: str,
    metric: Metric | None,
) -> tuple[Bench, str | None]:
    """Loads the models and the images; what was fine-tuned is named by `base` or by the model's own record."""
    record = Path(model) / "basinguard.json"
    if base is None and record.is_file():
        base = read_record(record).base
    for path in checkpoints:
        require_stable_diffusion(path)
    pipe = load_pipeline(model)
    images = ImageFolder(str(data), resolution=pipe.unet.config.sample_size * pipe.vae_scale_factor)
    images.setup("compare")
    training = TrainingSet(images.all_pixels(), tuple(caption for _, caption in images.items))
    plan = ProbePlan(captions=1, timesteps=plans.timesteps, scale=plans.scale)
    eye = Structure() if metric is None else Structure(metric)
    if eye.name != Structure().name:
        raise ValueError(f"the metric belongs to {eye.name!r}, the embedder here is {Structure().name!r}")
    guard = Guard(training, eye, plan, alignment_for(base or model, align))
    return Bench(pipe, guard, load_pipeline(base) if base else None, tuple(checkpoints)), base


def pairs_on(bench: Bench, plans: Plans, heldout: Path | None) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs that every method samples, what their quality and fidelity are measured against, and the prompts."""
    prompts = _spread(tuple(dict.fromkeys(bench.guard.training.captions)), plans.captions)
    cluster = tuple(k for k in range(len(prompts)) for _ in range(plans.per_caption))
    seeds = tuple(seed_table.VERIFICATION + i for i in range(len(cluster)))
    batch = Batch(tuple(prompts[k] for k in cluster), seeds)
    if heldout is None:
        return Pairs(batch, cluster, quality=_to_base(bench, prompts)), prompts
    others = ImageFolder(str(heldout), resolution=bench.model.resolution)
    others.setup("compare")
    captions, pixels = tuple(caption for _, caption in others.items), others.all_pixels()
    quality = _to_heldout(bench, prompts, captions, pixels) or _to_base(bench, prompts)
    unseen = _spread(tuple(c for c in captions if c not in bench.guard.training.captions), len(prompts))
    if not unseen:
        return Pairs(batch, cluster, quality=quality), prompts
    apart = Batch(unseen, tuple(seed_table.VERIFICATION + len(cluster) + i for i in range(len(unseen))))
    return Pairs(batch, cluster, apart, pixels, quality), prompts


def _to_heldout(
    bench: Bench, prompts: tuple[str, ...], captions: tuple[str, ...], pixels: Tensor
) -> KernelDistance | None:
    """Distance to held-out images of the very prompts where each has as many; else to all; None where they are few."""
    rows = [i for i, caption in enumerate(captions) if caption in prompts]
    each = {captions.count(prompt) for prompt in prompts}
    if len(each) == 1 and len(rows) >= FEWEST:
        groups = torch.tensor([prompts.index(captions[i]) for i in rows])
        return _distance(bench, pixels[rows], "held-out images of the same prompts", groups)
    return _distance(bench, pixels, "held-out images") if len(pixels) >= FEWEST else None


def _to_base(bench: Bench, prompts: tuple[str, ...]) -> KernelDistance | None:
    """Distance to what the base model draws of the same prompts; None without a base."""
    if bench.base is None:
        return None
    each = max(4, math.ceil(FEWEST / len(prompts)))
    seeds = range(seed_table.COMPARISON_REFERENCE, seed_table.COMPARISON_REFERENCE + each * len(prompts))
    model = LatentModel(bench.base)
    drawn = pairs_of(len(prompts), seeds, each, model.latent_shape)
    probe = bench.guard.probe(model, prompts)
    ends, _ = basin.branch(probe, probe.path.begin(drawn.noise), drawn.prompt, torch.zeros_like(drawn.prompt))
    return _distance(bench, model.decode(ends), "samples of the base model", drawn.prompt)


def _distance(bench: Bench, images: Tensor, what: str, groups: Tensor | None = None) -> KernelDistance:
    """In the eyes of the model that scores captions; without one, of the embedder that finds copies."""
    embedder = bench.guard.embedder
    scorer = getattr(bench.guard.align, "__self__", None)
    if isinstance(scorer, ClipScore):
        return KernelDistance.to_images(scorer.embed_images, images, eye=scorer.name, what=what, groups=groups)
    return KernelDistance.to_images(
        lambda seen: embed_all(seen, embedder), images, eye=embedder.name, what=what, groups=groups
    )


def _spread(items: tuple[str, ...], count: int | None) -> tuple[str, ...]:
    """`count` of the items, evenly spread; all when there are no more."""
    if count is None or count >= len(items):
        return items
    return tuple(items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int))


def settings_of(
    bench: Bench, model: str, base: str | None, data: Path, heldout: Path | None, plans: Plans, count: int
) -> Settings:
    """The identity of a run."""
    training, scorer = bench.guard.training, bench.guard.align
    return Settings(
        model=Path(model).name,
        base=Path(base).name if base else None,
        data=data.name,
        heldout=heldout.name if heldout else None,
        weights_sha256=weights_sha256(bench.pipe),
        dataset_sha256=dataset_sha256(training.images, training.captions),
        metric=bench.guard.embedder.metric,
        aligned_by=getattr(getattr(scorer, "__self__", None), "name", "none"),
        captions=count,
        per_caption=plans.per_caption,
        first_seed=seed_table.VERIFICATION,
        timesteps=plans.timesteps,
        scale=plans.scale,
    )


def require_same(path: Path, settings: Settings) -> None:
    """Writes the identity of a new run; refuses to mix points into a run of another one.

    Raises:
        FileExistsError: the first setting that differs, with both values.
    """
    if not path.is_file():
        path.write_text(settings.to_json(), encoding="utf-8")
        return
    there = Settings.from_json(path.read_text(encoding="utf-8"))
    differing = [name for name in Settings.model_fields if getattr(there, name) != getattr(settings, name)]
    if differing:
        name = differing[0]
        raise FileExistsError(
            f"{path.parent} holds points of a run with {name}={getattr(there, name)!r}, now it is "
            f"{getattr(settings, name)!r}: name another folder with --out, or start as before to go on"
        )
