"""`basinguard metrics`: how many of these samples, made anywhere, are copies of these training images?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..records import Metric
from ..stats import cluster_bootstrap, rate
from .aggregate import above_floor, summarise
from .cache import Cache, embed_files
from .diversity import pairwise, vendi_per_prompt
from .embed import Embedder
from .files import image_paths
from .match import search
from .null import Null, from_neighbours, from_samples
from .quality import compare_features
from .ratio import COPY_RATIO, distance_ratio
from .structure import Structure


def metrics(
    samples: Path,
    data: Path,
    *,
    embedder: Embedder | None = None,
    heldout: Path | None = None,
    base: Path | None = None,
    groups: Sequence[int] | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """How many of these samples are copies of these training images?

    Samples of one prompt belong into one subfolder of `samples`; files directly in it count as a prompt each.

    Args:
        samples: folder of generated images.
        data: folder of training images.
        embedder: the eye; None is the offline default.
        heldout: folder of like images that were not trained on: for a null and for likeness to the subject.
        base: folder of the base model's samples on the same prompts and noise, under the same names: for a null and as
            the floor.
        groups: duplicate group of each training image in the order of their names; None when all are different.
        cache: folder in which the training images' embeddings are kept.

    Returns:
        "metric" (name, threshold, source), "aggregates" as estimates, "null_train" (a threshold measured on this
        very set, and the share of samples above it), "ratio" (the test without a threshold), "diversity", with base
        samples "null_base_samples" and "above_floor", with held-out images "null_heldout", "likeness_to_heldout" and
        "quality", and "nearest" (for each sample its training image, similarity and whether mirrored).
        What could not be measured says why.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without pictures, a picture that cannot be read, or base samples under other names.
    """
    eye = embedder or Structure()
    files, known_files = image_paths(samples), image_paths(data)
    known = embed_files(known_files, eye, cache=Cache(cache) if cache else None)
    views = look(files, eye)
    best, index, mirrored = best_match(views, known)
    prompts = [str(f.parent.relative_to(samples)) if f.parent != samples else f.name for f in files]
    return {
        "metric": eye.metric.model_dump(),
        "samples": len(files),
        "training_images": len(known_files),
        "aggregates": {k: e.model_dump() for k, e in summarise(best, prompts, threshold=eye.metric.threshold).items()},
        "null_train": _or_why_not(lambda: _train_null(known_files, known, groups, eye, best, prompts)),
        "ratio": _or_why_not(lambda: _ratio(views, known, groups, prompts)),
        "diversity": _or_why_not(lambda: _diversity(views.straight, prompts, eye)),
        **_against_base(base, samples, files, known, eye, best, prompts),
        **_against_heldout(heldout, known, eye, views, best, prompts),
        "nearest": [
            {"sample": str(f), "training_image": str(known_files[i]), "similarity": s, "mirrored": m}
            for f, i, s, m in zip(files, index, best.tolist(), mirrored, strict=True)
        ],
    }


class Views(NamedTuple):
    """Embeddings [N, D] of images and of their mirror images."""

    straight: Tensor
    turned: Tensor


def look(files: list[Path], eye: Embedder) -> Views:
    """Both views of picture files."""
    return Views(embed_files(files, eye), embed_files(files, _Mirrored(eye)))


def best_match(views: Views, known: Tensor) -> tuple[np.ndarray, list[int], list[bool]]:
    """Similarity to the nearest known image either way round, its index, and whether mirrored."""
    (value, index), (other, other_index) = search(views.straight, known), search(views.turned, known)
    mirrored = (other > value)[:, 0]
    indices = torch.where(other > value, other_index, index)[:, 0]
    return torch.maximum(value, other)[:, 0].double().numpy(), indices.tolist(), mirrored.tolist()


class _Mirrored:
    """The same eye, looking at the mirror image."""

    def __init__(self, eye: Embedder):
        self.eye = eye

    @property
    def name(self) -> str:
        return f"{self.eye.name} mirrored"

    @property
    def metric(self) -> Metric:
        return self.eye.metric

    def __call__(self, images: Tensor) -> Tensor:
        return self.eye(images.flip(-1))


def _or_why_not(measure: Any) -> Any:
    try:
        return measure()
    except (ImportError, ValueError) as error:
        return f"not measured: {error}"


def _train_null(
    files: list[Path], known: Tensor, groups: Sequence[int] | None, eye: Embedder, best: np.ndarray, prompts: list[str]
) -> dict[str, Any]:
    turned = embed_files(files, _Mirrored(eye))
    own = list(groups) if groups is not None else list(range(len(known)))
    return _shared(from_neighbours(known, own, mirrored=turned), eye, best, prompts)


def _shared(null: Null, eye: Embedder, best: np.ndarray, prompts: list[str]) -> dict[str, Any]:
    """A null's threshold and the share of samples at or above it."""
    metric = null.metric(eye.name)
    return {"metric": metric.model_dump(), "share": rate(best >= metric.threshold, prompts).model_dump()}


def _ratio(views: Views, known: Tensor, groups: Sequence[int] | None, prompts: list[str]) -> dict[str, Any]:
    ratios = torch.minimum(*(distance_ratio(view, known, groups) for view in views))
    share = rate((ratios < COPY_RATIO).tolist(), prompts)
    return {"below": COPY_RATIO, "share": share.model_dump(), "duplicate_groups_known": groups is not None}


def _diversity(straight: Tensor, prompts: list[str], eye: Embedder) -> dict[str, Any]:
    numbers = np.unique(prompts, return_inverse=True)[1].tolist()
    found = {"vendi": vendi_per_prompt(straight, numbers), "pairwise": pairwise(straight, numbers)}
    return {"embedder": eye.name, **{name: estimate.model_dump() for name, estimate in found.items()}}


def _against_base(
    base: Path | None,
    samples: Path,
    files: list[Path],
    known: Tensor,
    eye: Embedder,
    best: np.ndarray,
    prompts: list[str],
) -> dict[str, Any]:
    """The base model's samples on the same prompts and noise: a null, and the floor under every similarity."""
    if base is None:
        return {}
    same = [base / f.relative_to(samples) for f in files]
    absent = [f for f in same if not f.is_file()]
    if absent:
        raise ValueError(
            f"{base} lacks {len(absent)} of {len(files)} samples, such as {absent[0].name}: same names needed"
        )
    views = look(same, eye)
    floor = best_match(views, known)[0]
    null = _or_why_not(lambda: _shared(from_samples(views.straight, known, mirrored=views.turned), eye, best, prompts))
    return {"null_base_samples": null, "above_floor": above_floor(best, floor, prompts).model_dump()}


def _against_heldout(
    heldout: Path | None, known: Tensor, eye: Embedder, views: Views, best: np.ndarray, prompts: list[str]
) -> dict[str, Any]:
    """Images of the subject that were not trained on: a null, and likeness, which a guard that undoes all lowers."""
    if heldout is None:
        return {}
    fresh = look(image_paths(heldout), eye)
    likeness = cluster_bootstrap((views.straight @ fresh.straight.T).mean(1).tolist(), prompts)

    def null() -> dict[str, Any]:
        found = from_samples(fresh.straight, known, mirrored=fresh.turned, name="held-out")
        return _shared(found, eye, best, prompts)

    def quality() -> dict[str, Any]:
        found = compare_features(views.straight, fresh.straight, name=eye.name)
        return {name: estimate.model_dump() for name, estimate in found.items()}

    return {
        "null_heldout": _or_why_not(null),
        "likeness_to_heldout": likeness.model_dump(),
        "quality": _or_why_not(quality),
    }
