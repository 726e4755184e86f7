"""The same picture more than once: byte for byte, by hash, by embedding; every near match checked by registration.

Cheap looks propose, one careful look decides (`register`), and groups are stars around one picture, so that a chain of
small edits does not tie strangers together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from ..similarity.overlay_fit import sketch, to_tensor
from ..similarity.registration import Overlay, search, whole_overlays
from .descriptors import describe, near_pairs, perceptual_hashes
from .nearest_neighbours import nearest_views
from .scan import Scan

Embed = Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [0, 1] -> unit vectors [B, D]

NEIGHBOURS = 4  # proposals of the views for an image
COSINE_FLOOR = 0.3  # below it a proposal is not worth the careful look
WINDOWED_UP_TO = 20_000  # images; beyond, only whole pictures are searched, and strong crops may be missed
AT_ONCE = 2  # proposals of an image that are searched before the next ones are considered
BATCH = 512


@dataclass(frozen=True)
class Pair:
    """Two images that are the same picture.

    Attributes:
        first, second: indices into the scan, first < second.
        kind: how it was found: same bytes, or proposed by the hash or by the embedding.
        similarity: of the registered pictures, 1 for the same bytes.
        share: part of the larger picture that the smaller one shows.
        mirrored: one is flipped.
    """

    first: int
    second: int
    kind: Literal["exact", "hash", "embedding"]
    similarity: float
    share: float
    mirrored: bool


def find_pairs(scan: Scan, *, views: bool = True) -> list[Pair]:
    """Pairs of images that show the same picture.

    Args:
        scan: thumbnails and content hashes.
        views: also propose what the hash misses (crops, borders, overlays), see `descriptors`.

    Returns:
        Pairs ordered by (first, second), enough of them to connect all copies of a picture, not all there are; of
        byte-identical images each is paired with the first of them only.
    """
    same = exact_pairs(scan.sha256)
    copies = {pair.second for pair in same}
    unique = np.array([row for row in range(len(scan.items)) if row not in copies], np.int64)
    if len(unique) < 2:
        return same
    thumbs = scan.thumbs if len(unique) == len(scan.thumbs) else scan.thumbs[unique]
    hashed = _once(hash_proposals(thumbs))
    viewed = _once(_view_proposals(thumbs)) if views else []
    by_hash = set(hashed)
    near = [
        _pair(int(unique[a]), int(unique[b]), "hash" if (a, b) in by_hash else "embedding", overlay)
        for (a, b), overlay in _confirm(thumbs, scan.aspects[unique], list(dict.fromkeys([*hashed, *viewed])))
    ]
    return sorted([*same, *near], key=lambda pair: (pair.first, pair.second))


def _confirm(
    thumbs: NDArray[np.uint8], aspects: NDArray, proposals: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Overlay]]:
    """Proposals that registration confirms: all that fit whole, then of the rest what a search finds, best first.

    A proposal between pictures that confirmed pairs already connect is not searched; `find_groups` compares what it
    still needs.
    """
    pictures = DisjointSet(range(len(thumbs)))
    rest = []
    for pair, overlay in zip(proposals, whole_overlays(sketch(thumbs), _array(proposals)), strict=True):
        if overlay.fits:
            pictures.merge(*pair)
            yield pair, overlay
        else:
            rest.append(pair)
    for batch in _rounds(rest):
        apart = [pair for pair in batch if not pictures.connected(*pair)]
        for pair, overlay in zip(apart, search(thumbs, aspects, _array(apart)), strict=True):
            if overlay.fits:
                pictures.merge(*pair)
                yield pair, overlay


def _rounds(pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The first proposals of every image, then the next ones, and so on."""
    rounds: dict[int, list[tuple[int, int]]] = {}
    turns: dict[int, int] = {}
    for first, second in pairs:
        turn = max(turns.get(first, 0), turns.get(second, 0)) // AT_ONCE
        turns[first], turns[second] = turns.get(first, 0) + 1, turns.get(second, 0) + 1
        rounds.setdefault(turn, []).append((first, second))
    yield from (rounds[turn] for turn in sorted(rounds))


def _array(pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)


def exact_pairs(sha256: Sequence[str]) -> list[Pair]:
    """Byte-identical files, each paired with the first of its kind."""
    first: dict[str, int] = {}
    rows = [(first.setdefault(digest, row), row) for row, digest in enumerate(sha256)]
    return [Pair(a, b, "exact", 1.0, 1.0, False) for a, b in rows if a != b]


def embed_thumbs(thumbs: NDArray[np.uint8], embed: Embed) -> Tensor:
    """Unit vectors [N, D] of thumbnails, batch by batch."""
    starts = range(0, len(thumbs), BATCH)
    return torch.cat([embed(to_tensor(thumbs[start : start + BATCH]) / 255) for start in starts])


def _pair(first: int, second: int, kind: Literal["hash", "embedding"], overlay: Overlay) -> Pair:
    first, second = min(first, second), max(first, second)
    return Pair(first, second, kind, round(overlay.similarity, 4), round(overlay.share, 4), overlay.mirrored)


def hash_proposals(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs near by hash, upright or with one mirrored, [P, 2]; for most copies that is all it takes."""
    hashes, mirrored = perceptual_hashes(thumbs).T
    return np.concatenate([near_pairs(hashes, hashes), near_pairs(mirrored, hashes)])


def _view_proposals(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The best few neighbours of each image, seen whole or through one of five windows, upright or mirrored."""
    views = describe(thumbs, windows=len(thumbs) <= WINDOWED_UP_TO)
    values, indices = nearest_views((views.upright[0], views.mirrored), views.upright, k=NEIGHBOURS)
    rows, columns = np.nonzero((indices >= 0) & (values >= COSINE_FLOOR))
    return np.stack([rows, indices[rows, columns]], 1)


def _once(pairs: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Each pair once, smaller index first, in the order of the proposals: the best of each image first."""
    return list(dict.fromkeys((min(a, b), max(a, b)) for a, b in pairs.tolist()))
