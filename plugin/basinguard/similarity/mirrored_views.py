"""Both views of an image, straight and mirrored, embedded together so that a file is decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.metric import Metric
from .embedder import Embedder, embed_all
from .embedding_cache import Cache, embed_files
from .matching import search


class Views(NamedTuple):
    """Embeddings [N, D] of images and of their mirror images."""

    straight: Tensor
    turned: Tensor


class BothWays:
    """An embedder that looks twice, [B, 2, D]; its name differs, so that a cache keeps the two apart."""

    def __init__(self, eye: Embedder):
        self.eye = eye

    @property
    def name(self) -> str:
        """The eye's name, and that it looked both ways."""
        return f"{self.eye.name} both ways"

    @property
    def metric(self) -> Metric:
        """The eye's own."""
        return self.eye.metric

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 2, D] of images [B, 3, H, W] in [0, 1]."""
        return torch.stack([self.eye(images), self.eye(images.flip(-1))], 1)


def look(files: Sequence[Path], eye: Embedder, *, cache: Path | None = None) -> Views:
    """Both views of picture files; `cache` is a folder in which embeddings are kept."""
    return Views(*embed_files(files, BothWays(eye), cache=Cache(cache) if cache else None).unbind(1))


def look_at(images: Tensor, eye: Embedder) -> Views:
    """Both views of images [N, 3, H, W] in [0, 1]."""
    return Views(*embed_all(images, BothWays(eye)).unbind(1))


def best_match(views: Views, known: Tensor) -> tuple[np.ndarray, list[int], list[bool]]:
    """Similarity to the nearest known image either way round, its index, and whether mirrored."""
    (value, index), (other, other_index) = search(views.straight, known), search(views.turned, known)
    mirrored = (other > value)[:, 0]
    indices = torch.where(other > value, other_index, index)[:, 0]
    return torch.maximum(value, other)[:, 0].double().cpu().numpy(), indices.tolist(), mirrored.tolist()
