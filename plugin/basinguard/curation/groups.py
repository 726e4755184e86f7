"""From pairs to groups: connected components, cut into stars so that a chain does not tie strangers together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .duplicates import Pair, compare, required_similarity
from .folder import Item
from .scan import Scan

UNFRAMED = 0.98  # share of a file inside its frame from which there is none

Same = Callable[[int, Sequence[int]], list[bool]]  # does the first show the same picture as each of the others?


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
    exact = {frozenset((p.first, p.second)) for p in pairs if p.kind == "exact"}

    def same(centre: int, others: Sequence[int]) -> list[bool]:
        overlays = compare(scan.thumbs, scan.aspects, [(centre, other) for other in others])
        return [
            frozenset((centre, other)) in exact or overlay.similarity >= required_similarity(overlay.share)
            for other, overlay in zip(others, overlays, strict=True)
        ]

    quality = [_quality(item, float(inside)) for item, inside in zip(scan.items, scan.inside, strict=True)]
    found = stars([(p.first, p.second) for p in pairs], same, quality)
    return [_group(members, scan.items, quality) for members in found]


def stars(links: Sequence[tuple[int, int]], same: Same, quality: Sequence[tuple]) -> list[list[int]]:
    """Connected components whose every member shows the same picture as one centre of it.

    A component of a chain a-b-c where a and c are strangers becomes [a, b] and, c having nobody left, nothing more:
    the centre is the member with most links, then the best quality, and what does not match it starts again.

    Example:
        >>> stars([(0, 1), (1, 2)], lambda centre, others: [True for _ in others], [(0,), (0,), (0,)])
        [[0, 1, 2]]
        >>> stars([(0, 1), (1, 2), (2, 3)], lambda c, others: [abs(c - o) < 2 for o in others], [(0,)] * 4)
        [[0, 1, 2]]
    """
    found = []
    left = _neighbours(links)
    while left:
        component = _component(min(left), left)
        if len(component) < 2:
            left.pop(component[0])
            continue
        centre = max(component, key=lambda member: (len(left[member]), quality[member], -member))
        others = [member for member in component if member != centre]
        unsure = [member for member in others if member not in left[centre]]
        fits = dict(zip(unsure, same(centre, unsure), strict=True)) if unsure else {}
        members = [member for member in component if member == centre or fits.get(member, True)]
        found.append(members)
        for member in members:
            for other in left.pop(member):
                if other in left:
                    left[other].discard(member)
    return sorted(found)


def _neighbours(links: Sequence[tuple[int, int]]) -> dict[int, set[int]]:
    neighbours: dict[int, set[int]] = {}
    for one, two in links:
        neighbours.setdefault(one, set()).add(two)
        neighbours.setdefault(two, set()).add(one)
    return neighbours


def _component(start: int, neighbours: dict[int, set[int]]) -> list[int]:
    seen, waiting = {start}, [start]
    while waiting:
        fresh = neighbours[waiting.pop()] - seen
        seen |= fresh
        waiting.extend(fresh)
    return sorted(seen)


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
