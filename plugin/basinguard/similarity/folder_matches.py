"""Samples and training images as folders of pictures: embedder, threshold and best matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.metric import Metric
from ..core.spread import spread
from .copy_detector_settings import CopyDetectorSettings
from .detector_choice import MOST, choose_detector
from .detector_loading import load_detector
from .duplicate_groups import merge_groups
from .embedder import Embedder, WithThreshold
from .image_files import image_paths, load_image
from .matching import Views, best_match, embed_file_views
from .thresholds import DUPLICATE, NullThreshold, from_neighbours, from_samples

CHOICE_SIDE = 256  # pixels to which pictures of mixed sizes are brought before a detector is chosen on them


@dataclass(frozen=True)
class FolderMatches:
    """Each sample with the training image nearest to it.

    Attributes:
        samples: the files.
        training: the file nearest to each.
        similarity: of each pair, [N].
        metric: what decides that it is a copy.
    """

    samples: Sequence[Path]
    training: Sequence[Path]
    similarity: np.ndarray
    metric: Metric


def match_folders(samples: Path, data: Path, detector: CopyDetectorSettings) -> FolderMatches:
    """The training image nearest to each sample.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a picture that cannot be read, or a threshold that cannot be measured on these folders.
    """
    files, train_files = image_paths(samples), image_paths(data)
    embedder = load_for(detector, train_files, None)
    train = embed_file_views(train_files, embedder)
    owner = merge_groups(range(len(train_files)), train_files)
    embedder = with_asked_threshold(detector, embedder, train, owner, None)
    best, index, _ = best_match(embed_file_views(files, embedder), train.straight, embedder)
    return FolderMatches(files, [train_files[i] for i in index], best, embedder.metric)


def load_for(detector: CopyDetectorSettings, train_files: Sequence[Path], heldout: Path | None) -> Embedder:
    """The embedder of the settings; "auto" is chosen on some of the training images, and on held-out ones."""
    if detector.embedder != "auto":
        return load_detector(detector)
    fresh = _pictures(image_paths(heldout)) if heldout else None
    return choose_detector(_pictures(train_files), heldout=fresh)[0]


def _pictures(paths: Sequence[Path]) -> Tensor:
    some = [paths[k] for k in spread(len(paths), MOST)]
    size = (CHOICE_SIDE, CHOICE_SIDE)
    images = [F.interpolate(load_image(path)[None], size, mode="bilinear", antialias=True) for path in some]
    return torch.cat(images).clamp(0, 1)


def with_asked_threshold(
    detector: CopyDetectorSettings, embedder: Embedder, train: Views, owner: Sequence[int], heldout: Path | None
) -> Embedder:
    """The embedder with the threshold that is asked for, where it is to be measured on these folders.

    Raises:
        ValueError: no held-out images, or near-duplicates that are not known as such.
    """
    if detector.threshold == "neighbours":
        return WithThreshold(embedder, train_null(train, owner, embedder).beside(embedder.metric))
    if detector.threshold == "heldout":
        if heldout is None:
            raise ValueError("threshold='heldout': name a folder of held-out images with --heldout")
        fresh = embed_file_views(image_paths(heldout), embedder)
        null = from_samples(fresh.straight, train.straight, embedder, mirrored=fresh.mirrored, name="held-out")
        return WithThreshold(embedder, null.beside(embedder.metric))
    return embedder


def train_null(train: Views, owner: Sequence[int], embedder: Embedder) -> NullThreshold:
    """The threshold that the training images themselves speak for; `owner` is the duplicate group of each.

    Raises:
        ValueError: near-duplicates that are not known as such.
    """
    null = from_neighbours(train.straight, owner, embedder, mirrored=train.mirrored)
    if null.threshold.value > DUPLICATE:
        raise ValueError(
            f"two training images are {null.threshold.value:.3f} alike and not known as duplicates; run "
            "`basinguard curate` and give its curation.json as --groups"
        )
    return null
