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
    mirrored: Tensor


class BothViews:
    """An embedder of images and their mirror images, [B, 2, D]; under another name, so that caches keep them apart."""

    def __init__(self, embedder: Embedder):
        self.embedder = embedder

    @property
    def name(self) -> str:
        """The embedder's name, and that it embeds both ways."""
        return f"{self.embedder.name} both ways"

    @property
    def metric(self) -> Metric:
        """The embedder's own."""
        return self.embedder.metric

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 2, D] of images [B, 3, H, W] in [0, 1]."""
        return torch.stack([self.embedder(images), self.embedder(images.flip(-1))], 1)


def embed_file_views(files: Sequence[Path], embedder: Embedder, *, cache: Path | None = None) -> Views:
    """Both views of picture files; `cache` is a folder in which embeddings are kept."""
    return Views(*embed_files(files, BothViews(embedder), cache=Cache(cache) if cache else None).unbind(1))


def embed_views(images: Tensor, embedder: Embedder) -> Views:
    """Both views of images [N, 3, H, W] in [0, 1]."""
    return Views(*embed_all(images, BothViews(embedder)).unbind(1))


def best_match(views: Views, gallery: Tensor) -> tuple[np.ndarray, list[int], list[bool]]:
    """Similarity to the nearest known image either way round, its index, and whether mirrored."""
    (value, index), (other, other_index) = search(views.straight, gallery), search(views.mirrored, gallery)
    is_mirrored = (other > value)[:, 0]
    indices = torch.where(other > value, other_index, index)[:, 0]
    return torch.maximum(value, other)[:, 0].double().cpu().numpy(), indices.tolist(), is_mirrored.tolist()
