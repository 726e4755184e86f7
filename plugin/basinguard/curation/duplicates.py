"""The same picture more than once, and pictures that look alike: byte for byte, by hash, by embedding.

Cheap looks propose and thumbnails are laid over each other (`registration`); whether two that fit are one picture is
decided on the files (`same_picture`). Everything else that fits is alike: worth a look, and never dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor

from ..similarity.overlay_fit import sketch, thumbnails_tensor
from ..similarity.registration import CERTAIN, Box, Overlay, best_overlays, one_thread_each, whole_overlays
from .descriptors import describe_thumbnails, near_pairs, perceptual_hashes, turned_proposals
from .likely_best import likely_best
from .nearest_neighbours import nearest_views
from .same_picture import Judge, PictureVerdict
from .scan import Scan
from .tiles import tile_proposals

Embed = Callable[[Tensor], Tensor]  # images [B, 3, H, W] in [0, 1] -> unit vectors [B, D]

NEIGHBOURS = 4  # proposals of the views for an image
COSINE_FLOOR = 0.3  # below it a proposal is not worth the careful look
WINDOWED_UP_TO = 20_000  # images; beyond, only whole pictures are searched, and strong crops may be missed
REFUSALS = 2  # comparisons with copies of one picture, those likely to stay first, after which it is another one
AT_ONCE = 2  # proposals of an image that are searched before the next ones are considered
BATCH = 512


@dataclass(frozen=True)
class Pair:
    """Two images that look alike to their thumbnails.

    Attributes:
        first, second: indices into the scan, first < second.
        kind: how it was found: same bytes, or proposed by the hash or by the embedding.
        similarity: of the registered thumbnails, 1 for the same bytes.
        share: part of the larger picture that the smaller one shows.
        mirrored: one is flipped.
        same: they show one picture; otherwise they are only alike.
        reason: how they differ, or what is the same, in words.
        covered: index of the one that has something laid over it; None for neither.
        turned: degrees by which one is turned.
        swapped: the first lies in the second, not the second in the first.
        box: that place, as shares of the larger picture's sides; None where it was not measured.
        collage: index of the one that is a collage and holds the other; None for neither, see `collages`.
    """

    first: int
    second: int
    kind: Literal["exact", "hash", "embedding"]
    similarity: float
    share: float
    mirrored: bool
    same: bool = True
    reason: str = ""
    covered: int | None = None
    turned: int = 0
    swapped: bool = False
    box: Box | None = None
    collage: int | None = None


Proposal = tuple[int, int]
Fit = tuple[Proposal, Overlay]


def find_pairs(scan: Scan, *, views: bool = True, judge: Judge | None = None) -> list[Pair]:
    """Pairs of images that show the same picture, or look alike.

    Args:
        scan: thumbnails and content hashes.
        views: also propose what the hash misses (crops, borders, overlays), see `descriptors`.
        judge: decides whether two that look alike are one picture; None makes one.

    Returns:
        Pairs ordered by (first, second), enough of them to connect all copies of a picture, not all there are; of
        byte-identical images each is paired with the first of them only.
    """
    same = exact_pairs(scan.sha256)
    copies = {pair.second for pair in same}
    unique = np.array([row for row in range(len(scan.items)) if row not in copies], np.int64)
    if len(unique) < 2:
        return same
    search_of = _Search(scan, unique, judge or Judge(scan))
    hashed = _once(hash_proposals(search_of.thumbs))
    viewed = _once(_view_proposals(search_of.thumbs)) if views else []
    near = search_of.run(list(dict.fromkeys([*hashed, *viewed])), set(hashed))
    near += search_of.turned({(pair.first, pair.second) for pair in near})
    near += search_of.tiled({(pair.first, pair.second) for pair in near})
    return sorted([*same, *near], key=lambda pair: (pair.first, pair.second))


class _Search:
    """Proposals laid over each other and judged: whole ones first, then what a search finds, best first.

    A proposal between pictures that same pairs already connect is left out; `find_groups` compares what it still needs.
    """

    def __init__(self, scan: Scan, unique: NDArray[np.int64], judge: Judge) -> None:
        self.thumbs = scan.thumbs if len(unique) == len(scan.thumbs) else scan.thumbs[unique]
        self.aspects, self.unique, self.judge = scan.aspects[unique], unique, judge
        self.pictures = DisjointSet(range(len(unique)))
        self.refusals: Counter[tuple[int, int]] = Counter()
        self.scan, self.guesses = scan, likely_best(scan, unique.tolist(), [])

    def run(self, proposals: Sequence[Proposal], by_hash: set[Proposal]) -> list[Pair]:
        """Pairs that fit, of proposals of which some are by hash."""
        fitting: dict[Proposal, tuple[Overlay, PictureVerdict]] = {}
        overlays = whole_overlays(sketch(self.thumbs), _array(proposals))
        whole = {pair: overlay for pair, overlay in zip(proposals, overlays, strict=True) if overlay.fits}
        links = [(*pair, overlay.mirrored) for pair, overlay in whole.items()]
        self.guesses = likely_best(self.scan, self.unique.tolist(), links)
        fitting |= self._judged(list(whole.items()))
        done = {pair for pair, (overlay, verdict) in fitting.items() if verdict.same or overlay.similarity >= CERTAIN}
        for batch in _rounds([pair for pair in proposals if pair not in done]):
            apart = self._apart(batch)
            places = zip(apart, best_overlays(self.thumbs, self.aspects, _array(apart)), strict=True)
            fitting |= self._judged([(pair, overlay) for pair, overlay in places if overlay.fits])
        return [
            self._pair(pair, "hash" if pair in by_hash else "embedding", *outcome) for pair, outcome in fitting.items()
        ]

    def _apart(self, pairs: Sequence[Proposal]) -> list[Proposal]:
        return [pair for pair in pairs if not self._is_settled(pair)]

    def _is_settled(self, pair: Proposal) -> bool:
        """Whether two show one picture for sure, or enough was seen of both to say that they do not."""
        one, two = self._roots(pair)
        return one == two or self.refusals[one, two] >= REFUSALS

    def _roots(self, pair: Proposal) -> Proposal:
        one, two = sorted(self.pictures[row] for row in pair)
        return one, two

    def turned(self, without: set[Proposal]) -> list[Pair]:
        """Pairs of which one is turned, besides those that are pairs already."""
        pairs = []
        for one, two, degrees in turned_proposals(self.thumbs).tolist():
            first, second = min(one, two), max(one, two)
            turn = degrees if one > two else 360 - degrees
            if (int(self.unique[first]), int(self.unique[second])) in without or self.pictures.connected(first, second):
                continue
            both = np.stack([self.thumbs[first], np.rot90(self.thumbs[second], turn // 90)])
            (overlay,) = whole_overlays(sketch(both), _array([(0, 1)]))
            if overlay.fits:
                verdict = self.judge(int(self.unique[first]), int(self.unique[second]), overlay, turn)
                pairs.append(self._pair((first, second), "hash", overlay, verdict, turn))
        return pairs

    def tiled(self, without: set[Proposal]) -> list[Pair]:
        """Pairs of a collage and what it holds, besides those that are pairs already."""
        pairs = []
        for whole, part, box in tile_proposals(self.thumbs):
            first, second = min(whole, part), max(whole, part)
            if (int(self.unique[first]), int(self.unique[second])) in without or self.pictures.connected(first, second):
                continue
            share = (box[2] - box[0]) * (box[3] - box[1])
            overlay = Overlay(1.0, share, False, whole > part, box)
            verdict = self.judge(int(self.unique[first]), int(self.unique[second]), overlay)
            if verdict.same:
                pairs.append(self._pair((first, second), "hash", overlay, verdict))
        return pairs

    def _judged(self, fits: Sequence[Fit]) -> dict[Proposal, tuple[Overlay, PictureVerdict]]:
        """The verdict of each pair that is not connected yet when its turn comes, those of the likely best first."""
        rows, judged = self.unique.tolist(), {}
        waiting = sorted(fits, key=lambda fit: max(self.guesses[row] for row in fit[0]), reverse=True)
        with one_thread_each() as mapped:
            while waiting:
                now, later = self._without_circles(waiting)
                verdicts = list(mapped(lambda fit: self.judge(rows[fit[0][0]], rows[fit[0][1]], fit[1]), now))
                for (pair, overlay), verdict in zip(now, verdicts, strict=True):
                    judged[pair] = overlay, verdict
                    if verdict.same:
                        self.pictures.merge(*pair)
                self.refusals.update(
                    self._roots(fit[0]) for fit, verdict in zip(now, verdicts, strict=True) if not verdict.same
                )
                waiting = [fit for fit in later if not self._is_settled(fit[0])]
        return judged

    def _without_circles(self, fits: Iterable[Fit]) -> tuple[list[Fit], list[Fit]]:
        """Pairs that are all needed if they are all the same picture, and the rest, which may turn out to be needed."""
        linked: DisjointSet = DisjointSet()
        now: list[Fit] = []
        later: list[Fit] = []
        for fit in fits:
            one, two = (self.pictures[row] for row in fit[0])
            if one != two:
                linked.add(one)
                linked.add(two)
                (now if linked.merge(one, two) else later).append(fit)
        # one picture's after one another, so that its files are opened once
        return sorted(now, key=lambda fit: linked[self.pictures[fit[0][0]]]), later

    def _pair(
        self,
        pair: Proposal,
        kind: Literal["hash", "embedding"],
        overlay: Overlay,
        verdict: PictureVerdict,
        turned: int = 0,
    ) -> Pair:
        first, second = (int(self.unique[row]) for row in pair)
        covered = None if verdict.overlay is None else (first, second)[verdict.overlay]
        return Pair(
            first,
            second,
            kind,
            round(overlay.similarity, 4),
            round(overlay.share, 4),
            overlay.mirrored,
            same=verdict.same,
            reason=verdict.reason,
            covered=covered,
            turned=turned,
            swapped=overlay.swapped,
            box=verdict.box,
        )


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
    return torch.cat([embed(thumbnails_tensor(thumbs[start : start + BATCH]) / 255) for start in starts])


def hash_proposals(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pairs near by hash, upright or with one mirrored, [P, 2]; for most copies that is all it takes."""
    hashes, mirrored = perceptual_hashes(thumbs).T
    return np.concatenate([near_pairs(hashes, hashes), near_pairs(mirrored, hashes)])


def _view_proposals(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The best few neighbours of each image, seen whole or through one of five windows, upright or mirrored."""
    views = describe_thumbnails(thumbs, windows=len(thumbs) <= WINDOWED_UP_TO)
    values, indices = nearest_views((views.upright[0], views.mirrored), views.upright, k=NEIGHBOURS)
    rows, columns = np.nonzero((indices >= 0) & (values >= COSINE_FLOOR))
    return np.stack([rows, indices[rows, columns]], 1)


def _once(pairs: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Each pair once, smaller index first, in the order of the proposals: the best of each image first."""
    return list(dict.fromkeys((min(a, b), max(a, b)) for a, b in pairs.tolist()))
