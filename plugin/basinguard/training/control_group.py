"""What a guard compares with and how it looks, from the words of a configuration: control group, eye, threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..guard.control_prompts import recombined
from ..guard.training_set import TrainingSet
from ..similarity.embedder import Embedder
from ..similarity.thresholds import NO_COPY, calibrated
from .data_sources import FolderSource, fitted

Threshold = Literal["published", "neighbours", "heldout"]


def require_control(embedder: Embedder, threshold: str, heldout: Sequence[str], folder: str | None) -> None:
    """Refuses settings that contradict each other, before anything is read.

    Raises:
        ValueError: two control groups, a threshold without what it is measured on, or an embedder that has none.
        FileNotFoundError: no such folder.
    """
    if heldout and folder:
        raise ValueError(
            f"heldout={list(heldout)} and heldout_folder={folder!r} given: the folder's captions are the held-out "
            "prompts; give one of them"
        )
    if folder and not Path(folder).expanduser().is_dir():
        raise FileNotFoundError(f"heldout_folder={folder!r}: no such folder; it holds images and captions, as training")
    if threshold not in get_args(Threshold):
        raise ValueError(f"threshold={threshold!r}: expected one of {', '.join(get_args(Threshold))}")
    if threshold == "heldout" and not folder:
        raise ValueError("threshold='heldout' is measured on held-out images: give heldout_folder as well")
    if threshold == "published" and embedder.metric.threshold >= NO_COPY:
        raise ValueError(
            f"no threshold is published for {embedder.name}: nothing would ever be a copy. Have one measured on your "
            "images with threshold='neighbours', or 'heldout' with heldout_folder"
        )


def training_set(data: Any, heldout: Sequence[str] | None, folder: str | None) -> TrainingSet:
    """The images of a datamodule, with their control group.

    Args:
        data: has `all_pixels()` and `items`.
        heldout: prompts that are not trained on; None borrows some, see `twins`.
        folder: captioned images that are not trained on, instead: images and prompts.

    Raises:
        ValueError: a folder that cannot be used, or one that holds training captions.
    """
    images, captions = data.all_pixels(), tuple(caption for _, caption in data.items)
    if folder is None:
        prompts = recombined(captions) if heldout is None else tuple(heldout)
        return TrainingSet(images, captions, prompts, borrowed=heldout is None)
    source = FolderSource.read(folder)
    if source.problems:
        lines = "\n".join(f"- {problem}" for problem in source.problems)
        raise ValueError(f"the images of heldout_folder={folder!r} cannot be used:\n{lines}")
    held = torch.stack([fitted(source.open(k), images.shape[-1]) for k in range(len(source.items))])
    return TrainingSet(images, captions, tuple(caption for _, caption in source.items), held)


def with_threshold(embedder: Embedder, threshold: Threshold, training: TrainingSet) -> Embedder:
    """The embedder with the threshold that is asked for.

    Raises:
        ValueError: too few images, or near-duplicates among those whose likeness is to be the null.
    """
    if threshold == "published":
        return embedder
    fresh: Tensor | None = training.heldout_images if threshold == "heldout" else None
    try:
        return calibrated(embedder, training.images, fresh=fresh)
    except ValueError as error:
        raise ValueError(
            f"threshold={threshold!r} cannot be measured: {error}. Or measure it on images of a heldout_folder with "
            "threshold='heldout'"
        ) from error
