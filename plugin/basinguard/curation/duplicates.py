"""The same picture more than once: byte for byte, by hash, by embedding; every near match checked by registration.

Cheap looks propose, one careful look decides (`register`), and groups are stars around one picture, so that a chain of
small edits does not tie strangers together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .hashing import near_pairs, perceptual_hash
from .neighbours import nearest
from .register import Overlay, register
from .scan import SIDE, Scan

Embed = Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [0, 1] -> unit vectors [B, D]

NEIGHBOURS = 4  # proposals of the embedding stage for an image
COSINE_FLOOR = 0.3  # below it a proposal is not worth the careful look
WINDOWED_UP_TO = 20_000  # images; beyond, only whole pictures are searched, and strong crops may be missed
WINDOW = 50  # pixels of 64: a crop of about three quarters looks like one of these windows
SIMILAR_WHOLE, SIMILAR_PART = 0.65, 0.85  # what an overlay must reach at share 1, and towards share 0
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


def required_similarity(share: float) -> float:
    """What an overlay of this share must reach: a smaller piece was searched in more places, so it must fit better.

    Source: chosen on generated pictures with seeds of its own; `recipes/bench_curate.py` measures it on others.
    """
    return SIMILAR_PART + (SIMILAR_WHOLE - SIMILAR_PART) * share


def find_pairs(scan: Scan, embed: Embed | None = None) -> list[Pair]:
    """Pairs of images that show the same picture.

    Args:
        scan: thumbnails and content hashes.
        embed: proposes pairs that the hash misses (crops, borders, overlays); None leaves that stage out.

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
    aspects = scan.aspects[unique]
    hashed = _hash_proposals(thumbs)
    embedded = _embedding_proposals(thumbs, embed) if embed else np.empty((0, 2), np.int64)
    kinds: dict[tuple[int, int], Literal["hash", "embedding"]] = dict.fromkeys(_ordered(embedded), "embedding")
    kinds.update(dict.fromkeys(_ordered(hashed), "hash"))
    near = [
        _pair(int(unique[a]), int(unique[b]), kinds[a, b], overlay)
        for (a, b), overlay in _confirm(thumbs, aspects, [*_ordered(hashed), *_unordered(embedded)])
    ]
    return sorted([*same, *near], key=lambda pair: (pair.first, pair.second))


def _confirm(
    thumbs: NDArray[np.uint8], aspects: NDArray, proposals: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Overlay]]:
    """Proposals that registration confirms: first those that fit whole, then the rest in rounds, best first.

    A proposal between pictures that confirmed pairs already connect is not looked at again; `find_groups` compares
    what it still needs.
    """
    parent = list(range(len(thumbs)))
    rest = list(dict.fromkeys(proposals))
    for search in (False, True):
        batches, rest = list(_rounds(rest)), []
        for batch in batches:
            apart = [pair for pair in batch if _root(parent, pair[0]) != _root(parent, pair[1])]
            for pair, overlay in zip(apart, compare(thumbs, aspects, apart, search=search), strict=True):
                if overlay.similarity >= required_similarity(overlay.share):
                    _join(parent, *pair)
                    yield pair, overlay
                else:
                    rest.append(pair)


def _rounds(pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The first proposal of every image, then the second of every image, and so on."""
    rounds: dict[int, list[tuple[int, int]]] = {}
    seen: dict[int, int] = {}
    for first, second in pairs:
        turn = max(seen.get(first, 0), seen.get(second, 0))
        seen[first], seen[second] = seen.get(first, 0) + 1, seen.get(second, 0) + 1
        rounds.setdefault(turn, []).append((first, second))
    yield from (rounds[turn] for turn in sorted(rounds))


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def _join(parent: list[int], one: int, two: int) -> None:
    parent[_root(parent, one)] = _root(parent, two)


def exact_pairs(sha256: Sequence[str]) -> list[Pair]:
    """Byte-identical files, each paired with the first of its kind."""
    first: dict[str, int] = {}
    rows = [(first.setdefault(digest, row), row) for row, digest in enumerate(sha256)]
    return [Pair(a, b, "exact", 1.0, 1.0, False) for a, b in rows if a != b]


def compare(
    thumbs: NDArray[np.uint8], aspects: NDArray, pairs: Iterable[tuple[int, int]], *, search: bool = True
) -> list[Overlay]:
    """The best overlay of each pair of thumbnails; see `register.register`."""
    listed = np.array(list(pairs), np.int64).reshape(-1, 2)
    return register(thumbs, aspects, listed, search=search)


def embed_thumbs(thumbs: NDArray[np.uint8], embed: Embed, *, mirrored: bool = False) -> Tensor:
    """Unit vectors [N, D] of thumbnails, batch by batch."""
    parts = []
    for start in range(0, len(thumbs), BATCH):
        images = torch.from_numpy(thumbs[start : start + BATCH]).permute(0, 3, 1, 2).float() / 255
        parts.append(embed(images.flip(-1) if mirrored else images))
    return torch.cat(parts)


def _pair(first: int, second: int, kind: Literal["hash", "embedding"], overlay: Overlay) -> Pair:
    first, second = min(first, second), max(first, second)
    return Pair(first, second, kind, round(overlay.similarity, 4), round(overlay.share, 4), overlay.mirrored)


def _hash_proposals(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    hashes = perceptual_hash(thumbs)
    mirrored = np.empty_like(hashes)
    for start in range(0, len(thumbs), BATCH):
        mirrored[start : start + BATCH] = perceptual_hash(thumbs[start : start + BATCH, :, ::-1])
    return np.concatenate([near_pairs(hashes, hashes), near_pairs(mirrored, hashes)])


def _embedding_proposals(thumbs: NDArray[np.uint8], embed: Embed) -> NDArray[np.int64]:
    """The best few neighbours of each image, seen whole or through one of five windows, upright or mirrored."""
    whole = embed_thumbs(thumbs, embed)
    queries = [whole, embed_thumbs(thumbs, embed, mirrored=True)]
    best: dict[tuple[int, int], float] = {}
    for known in _galleries(thumbs, whole, embed):
        for query in queries:
            values, indices = nearest(query, known, k=NEIGHBOURS, skip_self=True)
            rows, columns = np.nonzero((indices >= 0) & (values >= COSINE_FLOOR))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                pair, value = (row, int(indices[row, column])), float(values[row, column])
                best[pair] = max(value, best.get(pair, -1.0))
    ranked = sorted(best, key=lambda pair: (pair[0], -best[pair], pair[1]))
    taken: dict[int, int] = {}
    kept = []
    for row, other in ranked:
        taken[row] = taken.get(row, 0) + 1
        if taken[row] <= NEIGHBOURS:
            kept.append((row, other))
    return np.array(kept, np.int64).reshape(-1, 2)


def _galleries(thumbs: NDArray[np.uint8], whole: Tensor, embed: Embed) -> Iterable[Tensor]:
    yield whole
    if len(thumbs) > WINDOWED_UP_TO:
        return
    rest = SIDE - WINDOW
    for top, left in ((0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)):
        yield embed_thumbs(np.ascontiguousarray(thumbs[:, top : top + WINDOW, left : left + WINDOW]), embed)


def _ordered(pairs: NDArray[np.int64]) -> list[tuple[int, int]]:
    return sorted({(min(a, b), max(a, b)) for a, b in pairs.tolist()})


def _unordered(pairs: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The same, but in the order of the proposals: the best of each image first."""
    return list(dict.fromkeys((min(a, b), max(a, b)) for a, b in pairs.tolist()))
