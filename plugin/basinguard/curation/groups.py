"""From pairs to groups: connected components, cut into stars so that a chain does not tie strangers together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from ..similarity.registration import CERTAIN, register
from .duplicates import Pair
from .folder import Item
from .scan import Scan

UNFRAMED = 0.98  # share of a file inside its frame from which there is none

Same = Callable[[Sequence[tuple[int, int]]], Sequence[bool]]  # does each pair show the same picture?


@dataclass(frozen=True)
class Group:
    """Images that show one picture.

    Attributes:
        members: indices into the scan, the representative first, the rest in order.
        reason: why the representative was proposed, in words.
    """

    members: tuple[int, ...]
    reason: str

    @property
    def representative(self) -> int:
        """The image proposed to stay."""
        return self.members[0]


def find_groups(scan: Scan, pairs: Sequence[Pair]) -> list[Group]:
    """Groups of a scan, ordered by their first image; see `stars` for what a group is."""
    first = {digest: row for row, digest in reversed(list(enumerate(scan.sha256)))}

    def same(pairs_in_doubt: Sequence[tuple[int, int]]) -> list[bool]:
        alike = np.array([[first[scan.sha256[row]] for row in pair] for pair in pairs_in_doubt], np.int64).reshape(
            -1, 2
        )
        overlays = register(scan.thumbs, scan.aspects, alike)
        return [one == two or overlay.fits for (one, two), overlay in zip(alike.tolist(), overlays, strict=True)]

    quality = [_quality(item, float(inside)) for item, inside in zip(scan.items, scan.inside, strict=True)]
    sure = {(p.first, p.second) for p in pairs if p.share < 1 or p.similarity >= CERTAIN}
    components = stars([(p.first, p.second) for p in pairs], same, quality, sure)
    return [_group(members, scan.items, quality) for members in components]


def stars(
    links: Sequence[tuple[int, int]],
    same: Same,
    quality: Sequence[tuple],
    sure: Collection[tuple[int, int]] | None = None,
) -> list[list[int]]:
    """Connected components whose every member shows the same picture as one centre of it.

    `same` decides, besides for links that are `sure` (smaller index first), which by default all are.

    A component of a chain a-b-c where a and c are strangers becomes [a, b] and, c having nobody left, nothing more:
    the centre is the member with most links, then the best quality, and what does not match it starts again.

    Example:
        >>> stars([(0, 1), (1, 2)], lambda pairs: [True for _ in pairs], [(0,), (0,), (0,)])
        [[0, 1, 2]]
        >>> stars([(0, 1), (1, 2), (2, 3)], lambda pairs: [abs(a - b) < 2 for a, b in pairs], [(0,)] * 4)
        [[0, 1, 2]]
    """
    groups = []
    left, certain = _neighbours(links), set(links if sure is None else sure)
    while components := _components(left):  # all of them at once, because many comparisons together cost less
        centres = [max(c, key=lambda member: (len(left[member]), quality[member], -member)) for c in components]
        unsure = [
            (centre, member)
            for centre, component in zip(centres, components, strict=True)
            for member in component
            if member != centre and (min(centre, member), max(centre, member)) not in certain
        ]
        strangers = {member for (_, member), fits in zip(unsure, same(unsure), strict=True) if not fits}
        for component in components:
            members = [member for member in component if member not in strangers]
            groups += [members] if len(members) > 1 else []
            for member in members:
                for other in left.pop(member):
                    if other in left:
                        left[other].discard(member)
    return sorted(groups)


def _neighbours(links: Sequence[tuple[int, int]]) -> dict[int, set[int]]:
    neighbours: dict[int, set[int]] = {}
    for one, two in links:
        neighbours.setdefault(one, set()).add(two)
        neighbours.setdefault(two, set()).add(one)
    return neighbours


def _components(neighbours: dict[int, set[int]]) -> list[list[int]]:
    """Members of each connected component of at least two, by the smallest member."""
    components = DisjointSet(neighbours)
    for one, others in neighbours.items():
        for other in others:
            components.merge(one, other)
    return sorted(sorted(members) for members in components.subsets() if len(members) > 1)


def _quality(item: Item, inside: float) -> tuple[bool, int, bool, int, int]:
    """Larger is better: no frame, pixels, a caption, bytes of the file, words of the caption."""
    facts = item.facts
    pixels = facts.width * facts.height
    return inside > UNFRAMED, pixels, bool(item.caption), facts.bytes, len(item.caption.split())


def _group(members: Sequence[int], items: Sequence[Item], quality: Sequence[tuple]) -> Group:
    best = max(members, key=lambda member: (quality[member], -member))
    rest = [member for member in members if member != best]
    clean = [member for member in rest if quality[member][0]]
    reason = _reason(items[best], [items[member] for member in clean or rest])
    return Group((best, *rest), reason if len(clean) == len(rest) else f"no frame and {reason}")


def _reason(best: Item, rest: Sequence[Item]) -> str:
    size = f"{best.facts.width} x {best.facts.height}"
    pixels = best.facts.width * best.facts.height
    if all(pixels > other.facts.width * other.facts.height for other in rest):
        return f"the most pixels ({size})" if rest else f"a size of {size}"
    if best.caption and not all(other.caption for other in rest):
        return f"as many pixels as any ({size}) and a caption"
    if all(best.facts.bytes > other.facts.bytes for other in rest):
        return f"as many pixels as any ({size}) and the largest file, so the least compressed"
    return f"as good as any ({size}) and the first by name"
