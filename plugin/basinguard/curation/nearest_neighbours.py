"""Nearest neighbours of embeddings: exact in blocks, or approximate through faiss for sets too large for that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EXACT_UP_TO = 50_000
BLOCK_VALUES = 2**24  # similarities in memory at once: 64 MB


@torch.no_grad()
def nearest_neighbours(
    queries: Tensor, gallery: Tensor, *, k: int, skip_self: bool = False, exact: bool | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `k` most similar known vectors of each query by cosine, best first.

    Args:
        queries: unit vectors [N, D].
        gallery: unit vectors [M, D], on the same device.
        k: how many; fewer come back when there are fewer.
        skip_self: leave out the entry at the query's own index.
        exact: compare all pairs; None does so up to 50,000 known vectors and asks faiss beyond.

    Returns:
        Similarities and indices, both [N, min(k, M)]; index -1 where there was no further neighbour.

    Raises:
        ValueError: different dimensions, or k below 1.
        ImportError: a set this large needs faiss, which is not installed.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or k < 1:
        raise ValueError(
            f"nearest: queries {list(queries.shape)}, known {list(gallery.shape)}, k={k} do not fit together"
        )
    if exact if exact is not None else len(gallery) <= EXACT_UP_TO:
        return _top([queries], [gallery], k, skip_self)
    return _approximate(queries, gallery, k, skip_self)


def nearest_views(
    queries: Sequence[Tensor], gallery: Sequence[Tensor], *, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `k` images that look most like each image, when either may be seen in several ways, best first.

    Args:
        queries: unit vectors [N, D] of the same images, one tensor for each way to see them.
        gallery: likewise; the first is used alone beyond 50,000 images.
        k: how many; an image is never its own neighbour.

    Returns:
        The best similarity over all ways, and indices, both [N, k], -1 where there was no further neighbour.
    """
    if len(gallery[0]) <= EXACT_UP_TO:
        return _top(queries, gallery, k, skip_self=True)
    results = [_approximate(query, gallery[0], k, skip_self=True) for query in queries]
    values, indices = (np.concatenate(parts, 1) for parts in zip(*results, strict=True))
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)


@torch.no_grad()
def _top(
    queries: Sequence[Tensor], gallery: Sequence[Tensor], k: int, skip_self: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    count, rows = min(k, len(gallery[0])), len(queries[0])
    values = np.full((rows, count), -np.inf, np.float32)
    indices = np.full((rows, count), -1, np.int64)
    step = max(1, BLOCK_VALUES // max(1, len(gallery[0])))
    for start in range(0, rows, step):
        block = _best(queries, gallery, slice(start, start + step))
        if skip_self:
            own = torch.arange(start, start + len(block), device=block.device)
            inside = own < block.shape[1]
            block[torch.arange(len(block), device=block.device)[inside], own[inside]] = -torch.inf
        top = block.topk(count, dim=1)
        values[start : start + step] = top.values.cpu().numpy()
        indices[start : start + step] = top.indices.cpu().numpy()
    indices[np.isneginf(values)] = -1
    return values, indices


def _best(queries: Sequence[Tensor], gallery: Sequence[Tensor], rows: slice) -> Tensor:
    """For each of these rows and each known image the similarity under the best pair of views."""
    combinations = [(query[rows], entry) for query in queries for entry in gallery]
    best = combinations[0][0] @ combinations[0][1].T
    for query, entry in combinations[1:]:
        torch.maximum(best, query @ entry.T, out=best)
    return best


def _approximate(
    queries: Tensor, gallery: Tensor, k: int, skip_self: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """An inverted file over k-means cells; probes enough of them to find almost all close neighbours."""
    try:
        import faiss
    except ImportError:
        raise ImportError(
            f"{len(gallery):,} vectors given, and beyond {EXACT_UP_TO:,} faiss is needed: `pip install faiss-cpu`, "
            "or ask for exact=True and wait"
        ) from None
    vectors, query_array = gallery.cpu().numpy(), queries.cpu().numpy()
    cells = max(1, int(4 * len(vectors) ** 0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 32  # cells need not be exact, and learning them is most of the time
    index.cp.min_points_per_centroid = 1
    index.cp.niter = 8
    index.train(vectors)
    index.add(vectors)
    index.nprobe = max(1, min(cells, 16))
    values, indices = index.search(query_array, min(k + skip_self, len(vectors)))
    return _without_self(values, indices) if skip_self else (values, indices)


def _without_self(values: NDArray, indices: NDArray) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    own = indices == np.arange(len(indices))[:, None]
    own[~own.any(1), -1] = True  # its own cell was not probed: drop the last instead
    shape = len(values), values.shape[1] - 1
    return values[~own].reshape(shape), indices[~own].reshape(shape)
