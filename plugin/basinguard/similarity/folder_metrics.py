"""`basinguard metrics`: how many of these samples, made anywhere, are copies of these training images?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.estimate import Estimate
from ..core.files import file_sha256
from ..core.stats import cluster_bootstrap, rate
from .copy_detector_settings import CopyDetectorSettings
from .distance_ratio import COPY_RATIO, distance_ratio
from .distribution_metrics import compare_features, doubt
from .diversity import pairwise, vendi_per_prompt
from .duplicate_groups import merge_groups
from .embedder import Embedder, features
from .folder_matches import load_for, train_null, with_asked_threshold
from .image_files import image_paths, load_image
from .matching import Views, best_match, embed_file_views
from .scores import above_floor, summarise
from .structure import Structure
from .structure_figure import SAMPLED, StructureFigure, mostly_figures
from .thresholds import NullThreshold, from_samples


def folder_metrics(
    samples: Path,
    data: Path,
    *,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    heldout: Path | None = None,
    base: Path | None = None,
    groups: Sequence[int] | None = None,
    only: Collection[str] | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """How many of these samples are copies of these training images?

    Samples of one prompt belong into one subfolder of `samples`; files directly in it count as a prompt each.

    Args:
        samples: folder of generated images.
        data: folder of training images.
        detector: says what is alike, and from which similarity on it is a copy.
        heldout: folder of like images that were not trained on: for a null and for likeness to the subject.
        base: folder of the base model's samples on the same prompts and noise, under the same names: for a null and as
            the floor.
        groups: duplicate group of each training image in the order of their names (see `duplicate_groups`); None
            when all are different. Files with equal content are in one group either way.
        only: names of the training images that are meant, relative to `data`; None means all.
        cache: folder in which the training images' embeddings are kept.

    Returns:
        "metric" (name, published threshold, source) with "aggregates" as estimates; "null_train" (a threshold measured
        on this very set, and the share of samples above it), "ratio" (the test without a threshold), "diversity", with
        base samples "null_base_samples" and "above_floor", with held-out images "null_heldout",
        "likeness_to_heldout" and "quality", with training images on an empty ground "figure" (what the embedder for
        shifted and cropped figures finds beside the default), and "nearest" (for each sample its training image,
        similarity and whether mirrored). What could not be measured says why.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without pictures, a picture that cannot be read, samples or held-out images that are
            training images, or base samples under other names.
    """
    files, train_files = image_paths(samples), image_paths(data, only)
    _refuse_overlap(files, train_files)
    embedder = load_for(detector, train_files, heldout)
    train_views = embed_file_views(train_files, embedder, cache=cache)
    owner = merge_groups(range(len(train_files)) if groups is None else groups, train_files)
    embedder = with_asked_threshold(detector, embedder, train_views, owner, heldout)
    views = embed_file_views(files, embedder)
    best, index, mirrored = best_match(views, train_views.straight, embedder)
    prompts = [str(f.parent.relative_to(samples)) if f.parent != samples else f.name for f in files]
    judged = MatchedSamples(embedder, train_views, best, prompts)
    return {
        "metric": embedder.metric.model_dump(),
        "samples": len(files),
        "prompts": len(set(prompts)),
        "training_images": len(train_files),
        "aggregates": _dumped(summarise(best, prompts, threshold=embedder.metric.threshold)),
        "null_train": _or_why_not(lambda: judged.by(train_null(train_views, owner, embedder))),
        "ratio": _or_why_not(lambda: _ratio(judged, views, owner, groups_known=groups is not None)),
        "diversity": _or_why_not(lambda: _diversity(views.straight, prompts, embedder)),
        **_against_base(base, samples, files, judged),
        **_against_heldout(heldout, train_files, judged, views),
        **_by_figure(embedder, files, train_files, owner, prompts),
        "nearest": [
            {"sample": str(f), "training_image": str(train_files[i]), "similarity": s, "mirrored": m}
            for f, i, s, m in zip(files, index, best.tolist(), mirrored, strict=True)
        ],
    }


@dataclass(frozen=True)
class MatchedSamples:
    """Samples with their best matches, ready to be judged by any threshold.

    Attributes:
        embedder: the embedder.
        train_views: the training images, both ways.
        best: best-match similarity of each sample, [N].
        prompts: which prompt each sample was drawn for.
    """

    embedder: Embedder
    train_views: Views
    best: np.ndarray
    prompts: list[str]

    def by(self, null: NullThreshold) -> dict[str, Any]:
        """A null's threshold, the share of samples at or above it, and what to judge by beside a published one."""
        own, advised = null.metric(self.embedder.name), null.beside(self.embedder.metric)
        return {
            "metric": own.model_dump(),
            "share": rate(self.best >= own.threshold, self.prompts).model_dump(),
            "advised": {
                "metric": advised.model_dump(),
                "share": rate(self.best >= advised.threshold, self.prompts).model_dump(),
            },
        }


def _refuse_overlap(samples: Sequence[Path], data: Sequence[Path]) -> None:
    training = {path.resolve() for path in data}
    shared = [path for path in samples if path.resolve() in training]
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(samples)} samples, such as {shared[0]}, are in the training folder too: give two "
            "folders, neither inside the other"
        )


def _dumped(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.model_dump() for name, estimate in estimates.items()}


def _or_why_not(measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    except (ImportError, ValueError) as error:
        return f"not measured: {error}"


def _ratio(judged: MatchedSamples, views: Views, groups: Sequence[int], *, groups_known: bool) -> dict[str, Any]:
    train, embedder = judged.train_views.straight, judged.embedder
    ratios = torch.minimum(*(distance_ratio(view, train, groups, embedder) for view in views))
    share = rate((ratios < COPY_RATIO).tolist(), judged.prompts)
    return {"below": COPY_RATIO, "share": share.model_dump(), "duplicate_groups_known": groups_known}


def _diversity(straight: Tensor, prompts: list[str], embedder: Embedder) -> dict[str, Any]:
    numbers = np.unique(prompts, return_inverse=True)[1].tolist()
    straight = features(straight, embedder)
    scores = {"vendi": vendi_per_prompt(straight, numbers), "pairwise": pairwise(straight, numbers)}
    return {"embedder": embedder.name, **_dumped(scores)}


def _by_figure(
    embedder: Embedder, files: Sequence[Path], train_files: Sequence[Path], owner: Sequence[int], prompts: list[str]
) -> dict[str, Any]:
    """What the embedder for figures finds beside the default, where the training images stand on an empty ground."""
    some = train_files[:: -(-len(train_files) // SAMPLED)]
    if embedder.name != Structure().name or not mostly_figures([load_image(path) for path in some]):
        return {}
    second = StructureFigure()
    train_views = embed_file_views(train_files, second)
    best = best_match(embed_file_views(files, second), train_views.straight, second)[0]
    share = rate(best >= second.metric.threshold, prompts)
    own = _or_why_not(
        lambda: MatchedSamples(second, train_views, best, prompts).by(train_null(train_views, owner, second))
    )
    return {
        "figure": {
            "metric": second.metric.model_dump(),
            "share": share.model_dump(),
            "null_train": own,
            "similarity": best.tolist(),
        }
    }


def _against_base(base: Path | None, samples: Path, files: list[Path], judged: MatchedSamples) -> dict[str, Any]:
    """The base model's samples on the same prompts and noise: a null, and the floor under every similarity."""
    if base is None:
        return {}
    same = [base / f.relative_to(samples) for f in files]
    absent = [f for f in same if not f.is_file()]
    if absent:
        raise ValueError(
            f"{base} lacks {len(absent)} of {len(files)} samples, such as {absent[0].name}: same names needed"
        )
    views, train = embed_file_views(same, judged.embedder), judged.train_views.straight
    floor = best_match(views, train, judged.embedder)[0]
    null = _or_why_not(lambda: judged.by(from_samples(views.straight, train, judged.embedder, mirrored=views.mirrored)))
    return {"null_base_samples": null, "above_floor": above_floor(judged.best, floor, judged.prompts).model_dump()}


def _against_heldout(
    heldout: Path | None, train_files: Sequence[Path], judged: MatchedSamples, views: Views
) -> dict[str, Any]:
    """Images of the subject that were not trained on: a null, and likeness, which a guard that undoes all lowers."""
    if heldout is None:
        return {}
    files = image_paths(heldout)
    trained = {file_sha256(path) for path in train_files}
    leaked = [path for path in files if file_sha256(path) in trained]
    if leaked:
        raise ValueError(f"{len(leaked)} of {len(files)} held-out images, such as {leaked[0]}, are training images")
    fresh = embed_file_views(files, judged.embedder)
    ours, theirs = (features(view.straight, judged.embedder) for view in (views, fresh))
    likeness = cluster_bootstrap((ours @ theirs.T).mean(1).tolist(), judged.prompts)

    def null() -> dict[str, Any]:
        train = judged.train_views.straight
        null = from_samples(fresh.straight, train, judged.embedder, mirrored=fresh.mirrored, name="held-out")
        return judged.by(null)

    def quality() -> dict[str, Any]:
        qualities = compare_features(ours, theirs, name=judged.embedder.name)
        return _dumped(qualities) | {"note": doubt(min(len(files), len(judged.best)))}

    return {
        "null_heldout": _or_why_not(null),
        "likeness_to_heldout": likeness.model_dump(),
        "quality": _or_why_not(quality),
    }
