"""`basinguard metrics`: how many of these samples, made anywhere, are copies of these training images?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.estimate import Estimate
from ..core.files import file_sha256
from ..core.stats import cluster_bootstrap, rate
from .distance_ratio import COPY_RATIO, distance_ratio
from .distribution_metrics import compare_features, doubt
from .diversity import pairwise, vendi_per_prompt
from .embedder import Embedder
from .image_files import image_paths, load_image
from .mirrored_views import Views, best_match, look
from .scores import above_floor, lines, summarise
from .structure import Structure
from .structure_figure import LOOKED_AT, Figure, mostly_figures
from .thresholds import DUPLICATE, Null, from_neighbours, from_samples


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
        groups: duplicate group of each training image in the order of their names (see `groups_of`); None when all
            are different. Files with equal content are in one group either way.
        cache: folder in which the training images' embeddings are kept.

    Returns:
        "metric" (name, published threshold, source) with "aggregates" as estimates; "null_train" (a threshold measured
        on this very set, and the share of samples above it), "ratio" (the test without a threshold), "diversity", with
        base samples "null_base_samples" and "above_floor", with held-out images "null_heldout",
        "likeness_to_heldout" and "quality", with training images on an empty ground "figure" (what the eye for shifted
        and cropped figures finds beside the default), and "nearest" (for each sample its training image, similarity and
        whether mirrored). What could not be measured says why.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without pictures, a picture that cannot be read, samples or held-out images that are
            training images, or base samples under other names.
    """
    eye = embedder or Structure()
    files, known_files = image_paths(samples), image_paths(data)
    _refuse_overlap(files, known_files)
    known = look(known_files, eye, cache=cache)
    owner = merged(range(len(known_files)) if groups is None else groups, known_files)
    views = look(files, eye)
    best, index, mirrored = best_match(views, known.straight)
    prompts = [str(f.parent.relative_to(samples)) if f.parent != samples else f.name for f in files]
    judged = Judged(eye, known, best, prompts)
    return {
        "metric": eye.metric.model_dump(),
        "samples": len(files),
        "prompts": len(set(prompts)),
        "training_images": len(known_files),
        "aggregates": {k: e.model_dump() for k, e in summarise(best, prompts, threshold=eye.metric.threshold).items()},
        "null_train": _or_why_not(lambda: judged.by(_train_null(known, owner))),
        "ratio": _or_why_not(lambda: _ratio(views, known.straight, owner, prompts, known=groups is not None)),
        "diversity": _or_why_not(lambda: _diversity(views.straight, prompts, eye)),
        **_against_base(base, samples, files, judged),
        **_against_heldout(heldout, known_files, judged, views),
        **_by_figure(eye, files, known_files, owner, prompts),
        "nearest": [
            {"sample": str(f), "training_image": str(known_files[i]), "similarity": s, "mirrored": m}
            for f, i, s, m in zip(files, index, best.tolist(), mirrored, strict=True)
        ],
    }


def spoken(found: Mapping[str, Any]) -> list[str]:
    """What `metrics` found, for people: the aggregates, and the share of copies by every threshold."""
    embedder = found["metric"]["embedder"]
    aggregates = {name: Estimate.model_validate(e) for name, e in found["aggregates"].items()}
    rows = lines(aggregates, metric=f"{embedder} at {found['metric']['threshold']:.3g} (published)")
    if second := found.get("figure"):
        share = {"share": Estimate.model_validate(second["share"])}
        rows += lines(
            share, metric=f"{second['metric']['embedder']} at {second['metric']['threshold']:.3g} (published)"
        )
    for part in ("null_train", "null_heldout", "null_base_samples"):
        null = found.get(part)
        if isinstance(null, str):
            rows.append(f"{part}: {null}")
        elif null:
            share = {"share": Estimate.model_validate(null["share"])}
            rows += lines(share, metric=f"{embedder} at {null['metric']['threshold']:.3g} ({part})")
    return rows


def groups_of(data: Path, curation: Path) -> list[int]:
    """Duplicate group of each training image, as `basinguard curate` found them.

    Args:
        data: folder of training images.
        curation: its curation.json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a curation.json, or one of another folder.
    """
    if not curation.is_file():
        raise FileNotFoundError(f"{curation}: no such file; `basinguard curate {data}` writes one")
    try:
        groups = [group["files"] for group in json.loads(curation.read_text())["groups"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{curation}: not a curation.json ({type(error).__name__}: {str(error)[:200]})") from None
    names = {path.relative_to(data).as_posix(): number for number, path in enumerate(image_paths(data))}
    owner = list(range(len(names)))
    for files in groups:
        strange = [name for name in files if name not in names]
        if strange:
            raise ValueError(
                f"{curation} names {strange[0]!r}, which is not in {data}: was it made for another folder?"
            )
        for name in files:
            owner[names[name]] = names[files[0]]
    return owner


def merged(groups: Sequence[int], files: Sequence[Path]) -> list[int]:
    """Groups of files, with those of equal content brought together.

    Raises:
        ValueError: another number of groups than files.
    """
    if len(groups) != len(files):
        raise ValueError(f"{len(groups)} groups given for {len(files)} training images; expected one each")
    first: dict[str, int] = {}
    renamed: dict[int, int] = {}
    for path, group in zip(files, groups, strict=True):
        target = _root(renamed, group)
        renamed[target] = _root(renamed, first.setdefault(file_sha256(path), target))
    return [_root(renamed, group) for group in groups]


def _root(renamed: dict[int, int], group: int) -> int:
    while renamed.get(group, group) != group:
        group = renamed[group]
    return group


@dataclass(frozen=True)
class Judged:
    """Samples with their best matches, ready to be judged by any threshold.

    Attributes:
        eye: the embedder.
        known: the training images, both ways.
        best: best-match similarity of each sample, [N].
        prompts: which prompt each sample was drawn for.
    """

    eye: Embedder
    known: Views
    best: np.ndarray
    prompts: list[str]

    def by(self, null: Null) -> dict[str, Any]:
        """A null's threshold, the share of samples at or above it, and what to judge by beside a published one."""
        own, advised = null.metric(self.eye.name), null.beside(self.eye.metric)
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


def _or_why_not(measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    except (ImportError, ValueError) as error:
        return f"not measured: {error}"


def _train_null(known: Views, owner: Sequence[int]) -> Null:
    found = from_neighbours(known.straight, owner, mirrored=known.turned)
    if found.threshold.value > DUPLICATE:
        raise ValueError(
            f"two training images are {found.threshold.value:.3f} alike and not known as duplicates; run "
            "`basinguard curate` and give its curation.json as --groups"
        )
    return found


def _ratio(views: Views, train: Tensor, groups: Sequence[int], prompts: list[str], *, known: bool) -> dict[str, Any]:
    ratios = torch.minimum(*(distance_ratio(view, train, groups) for view in views))
    share = rate((ratios < COPY_RATIO).tolist(), prompts)
    return {"below": COPY_RATIO, "share": share.model_dump(), "duplicate_groups_known": known}


def _diversity(straight: Tensor, prompts: list[str], eye: Embedder) -> dict[str, Any]:
    numbers = np.unique(prompts, return_inverse=True)[1].tolist()
    found = {"vendi": vendi_per_prompt(straight, numbers), "pairwise": pairwise(straight, numbers)}
    return {"embedder": eye.name, **{name: estimate.model_dump() for name, estimate in found.items()}}


def _by_figure(
    eye: Embedder, files: Sequence[Path], known_files: Sequence[Path], owner: Sequence[int], prompts: list[str]
) -> dict[str, Any]:
    """What the eye for figures finds beside the default, where the training images stand on an empty ground."""
    some = known_files[:: -(-len(known_files) // LOOKED_AT)]
    if eye.name != Structure().name or not mostly_figures([load_image(path) for path in some]):
        return {}
    second = Figure()
    known = look(known_files, second)
    best = best_match(look(files, second), known.straight)[0]
    share = rate(best >= second.metric.threshold, prompts)
    own = _or_why_not(lambda: Judged(second, known, best, prompts).by(_train_null(known, owner)))
    return {
        "figure": {
            "metric": second.metric.model_dump(),
            "share": share.model_dump(),
            "null_train": own,
            "similarity": best.tolist(),
        }
    }


def _against_base(base: Path | None, samples: Path, files: list[Path], judged: Judged) -> dict[str, Any]:
    """The base model's samples on the same prompts and noise: a null, and the floor under every similarity."""
    if base is None:
        return {}
    same = [base / f.relative_to(samples) for f in files]
    absent = [f for f in same if not f.is_file()]
    if absent:
        raise ValueError(
            f"{base} lacks {len(absent)} of {len(files)} samples, such as {absent[0].name}: same names needed"
        )
    views = look(same, judged.eye)
    floor = best_match(views, judged.known.straight)[0]
    null = _or_why_not(lambda: judged.by(from_samples(views.straight, judged.known.straight, mirrored=views.turned)))
    return {"null_base_samples": null, "above_floor": above_floor(judged.best, floor, judged.prompts).model_dump()}


def _against_heldout(heldout: Path | None, known_files: Sequence[Path], judged: Judged, views: Views) -> dict[str, Any]:
    """Images of the subject that were not trained on: a null, and likeness, which a guard that undoes all lowers."""
    if heldout is None:
        return {}
    files = image_paths(heldout)
    trained = {file_sha256(path) for path in known_files}
    leaked = [path for path in files if file_sha256(path) in trained]
    if leaked:
        raise ValueError(f"{len(leaked)} of {len(files)} held-out images, such as {leaked[0]}, are training images")
    fresh = look(files, judged.eye)
    likeness = cluster_bootstrap((views.straight @ fresh.straight.T).mean(1).tolist(), judged.prompts)

    def null() -> dict[str, Any]:
        known = judged.known.straight
        return judged.by(from_samples(fresh.straight, known, mirrored=fresh.turned, name="held-out"))

    def quality() -> dict[str, Any]:
        found = compare_features(views.straight, fresh.straight, name=judged.eye.name)
        return {name: estimate.model_dump() for name, estimate in found.items()} | {
            "note": doubt(min(len(files), len(judged.best)))
        }

    return {
        "null_heldout": _or_why_not(null),
        "likeness_to_heldout": likeness.model_dump(),
        "quality": _or_why_not(quality),
    }
