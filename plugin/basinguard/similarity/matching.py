"""The nearest training image of each sample, straight and mirrored.

Search is exact, in chunks, on whatever device the embeddings are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.extras import optional
from ..core.metric import Match, Metric
from .embedder import Embedder, embed_all, two_stage
from .image_files import Cache, embed_files

CHUNK = 2**22  # similarities held at once: 16 MB
FAISS_FROM = 100_000  # gallery images from which faiss, where it is installed, does the search


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


def best_match(views: Views, gallery: Tensor, embedder: Embedder) -> tuple[np.ndarray, list[int], list[bool]]:
    """Similarity to the nearest image of a gallery either way round, its index, and whether mirrored."""
    (value, index), (other, other_index) = (search(view, gallery, embedder) for view in views)
    is_mirrored = (other > value)[:, 0]
    indices = torch.where(other > value, other_index, index)[:, 0]
    return torch.maximum(value, other)[:, 0].double().cpu().numpy(), indices.tolist(), is_mirrored.tolist()


def nearest_matches(samples: Tensor, gallery: Tensor, embedder: Embedder, *, mirror: bool = True) -> list[Match]:
    """The training image most like each sample.

    Args:
        samples: images, [N, 3, H, W] in [0, 1].
        gallery: training images, [M, 3, H, W] in [0, 1], or their embeddings by the same embedder, [M, D].
        embedder: says what is alike.
        mirror: also compare each sample's mirror image; flipped training is common and a flipped copy is a copy.

    Returns:
        One `Match` for each sample, in order.

    Raises:
        ValueError: no samples, no training images, or embeddings of another size.
    """
    if len(samples) == 0 or len(gallery) == 0:
        raise ValueError(f"{len(samples)} samples and {len(gallery)} training images given; need at least 1 of each")
    vectors = gallery if gallery.ndim == 2 else embed_all(gallery, embedder)
    straight = embed_all(samples, embedder)
    views = Views(straight, embed_all(samples.flip(-1), embedder) if mirror else straight)
    similarities, indices, mirrored = best_match(views, vectors, embedder)
    rows = zip(indices, similarities.tolist(), mirrored, strict=True)
    return [Match(index=i, similarity=s, mirrored=m) for i, s, m in rows]


@torch.no_grad()
def search(queries: Tensor, gallery: Tensor, embedder: Embedder | None = None, *, k: int = 1) -> tuple[Tensor, Tensor]:
    """The `k` pictures most like each query: similarities and where they are, both [N, k], best first.

    Args:
        queries: [N, D].
        gallery: [M, D]; fewer than `k` give as many as there are.
        embedder: made both, and compares by a search of its own if it has one; else, and where None, dot products do.

    Raises:
        ValueError: nothing to search in, sizes that differ, or values that are not finite.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or len(gallery) == 0:
        raise ValueError(
            f"queries {list(queries.shape)} and gallery {list(gallery.shape)} given; expected [N, D] and [M, D] "
            "with M >= 1 and one D: embed both with the same embedder"
        )
    k, stages = min(k, len(gallery)), two_stage(embedder) if embedder else None
    values, indices = (stages.search if stages else by_product)(queries, gallery.to(queries), k)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("embeddings with NaN or infinite values given; embed the images again")
    return values, indices


def by_product(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest dot products of unit vectors and where they are, both [N, k]."""
    if _faiss_pays(gallery):
        return _by_faiss(queries, gallery, k)
    parts = queries.split(max(1, CHUNK // len(gallery)))
    tops = [(part @ gallery.T).topk(k, dim=1) for part in parts]
    return torch.cat([top.values for top in tops]), torch.cat([top.indices for top in tops])


def _faiss_pays(gallery: Tensor) -> bool:
    """Whether the gallery is large, on the CPU, and faiss is there; its flat index is exact too."""
    return len(gallery) >= FAISS_FROM and gallery.device.type == "cpu" and find_spec("faiss") is not None


def _by_faiss(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    faiss = optional("faiss", install="faiss-cpu", gives="searching a large gallery")
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.float().contiguous().numpy())
    values, indices = index.search(queries.float().contiguous().numpy(), k)
    return torch.from_numpy(values).to(queries), torch.from_numpy(indices)
