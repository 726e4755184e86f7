"""From pairs to groups: copies of one picture, each compared with the one that stays, and pictures that look alike.

Copies of copies make a chain, and along a chain small edits add up to another picture. So nothing is dropped that was
not itself compared with what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.cluster.hierarchy import DisjointSet

from ..similarity.registration import WHOLE, Overlay, one_thread_each
from .collages import partly_known
from .duplicates import REFUSALS, Pair
from .picture_quality import Quality, picture_qualities, why_best
from .placement import Placement, placements
from .same_picture import Judge
from .scan import Scan
from .true_detail import true_details

TURNED_WHOLE = 0.97  # of a picture, which another must show if what is turned against that one is laid over it
TRIED = 3  # copies that are as good as each other, of which one may be the same as more of the rest
Rows = tuple[int, int]


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


def find_groups(scan: Scan, pairs: Sequence[Pair], *, judge: Judge | None = None) -> list[Group]:
    """Copies of one picture, ordered by their first image; every member was compared with the representative.

    A collage never stays, and goes only where the others show all of it; see `collages.tell_collages`.
    """
    judge = judge or Judge(scan)
    same = [pair for pair in pairs if pair.same]
    covered = {pair.covered for pair in pairs if pair.covered is not None}
    collages, never_dropped = {pair.collage for pair in same if pair.collage is not None}, partly_known(same)
    pairs_of: dict[int, list[Pair]] = {}
    for pair in same:
        pairs_of.setdefault(pair.first, []).append(pair)
    groups = []
    for component in components((pair.first, pair.second) for pair in same):
        within = [pair for row in component for pair in pairs_of.get(row, ())]
        plain = picture_qualities(scan, component, covered, collages)
        quality = true_details(scan, plain, placements(component[0], within))
        whole = [row for row in component if row not in never_dropped]
        ranked = sorted(whole, key=lambda row: quality[row].rank, reverse=True)
        while len(ranked) > 1:
            best, copies = _representative(scan, judge, ranked, _may_stay(ranked, quality, plain), within)
            if copies:
                members = (best, *sorted(copies))
                groups.append(Group(members, why_best([quality[row] for row in members])))
            ranked = [row for row in ranked if row != best and row not in copies]
    groups = _joined_by_others(scan, judge, groups, pairs)
    return sorted(groups, key=lambda group: min(group.members))


def _joined_by_others(scan: Scan, judge: Judge, groups: Sequence[Group], pairs: Sequence[Pair]) -> list[Group]:
    """Groups with those that only look like a poor copy, once they were compared with the copy that stays."""
    members = [list(group.members) for group in groups]
    group_of = {row: number for number, rows in enumerate(members) for row in rows}
    tries: Counter[Rows] = Counter()
    for pair in (pair for pair in pairs if not pair.same):
        for single, copy in ((pair.first, pair.second), (pair.second, pair.first)):
            number = group_of.get(copy)
            if number is None or single in group_of or copy == members[number][0]:
                continue
            best, rows = members[number][0], {*members[number]}
            tries[best, single] += 1
            if tries[best, single] > REFUSALS:
                continue
            links = [link for link in pairs if link.same and link.first in rows and link.second in rows]
            place = placements(best, [*links, replace(pair, same=True)]).get(single)
            guess = place.overlay() if place else None
            quality = picture_qualities(scan, [best, single], (), ())
            if guess and quality[single].rank < quality[best].rank and judge(best, single, guess).same:
                members[number].append(single)
                group_of[single] = number
    return [replace(group, members=(rows[0], *sorted(rows[1:]))) for group, rows in zip(groups, members, strict=True)]


def _may_stay(ranked: Sequence[int], quality: Mapping[int, Quality], plain: Mapping[int, Quality]) -> list[int]:
    """The best of some copies, those that are as good, and the largest that is not stretched."""
    equals = [row for row in ranked if quality[row].merit == quality[ranked[0]].merit]
    unstretched = [row for row in ranked if quality[row].usual_shape] or equals
    return [*equals[:TRIED], max(unstretched, key=lambda row: plain[row].rank)]


def _representative(
    scan: Scan, judge: Judge, ranked: Sequence[int], may_stay: Sequence[int], pairs: Sequence[Pair]
) -> tuple[int, set[int]]:
    """Which of some copies stays, and those that are the same picture.

    Where the first that may stay is not the same as all others for sure, another one may be: what one has more of is
    not worth copies that would be left in.
    """
    copies_of: dict[int, set[int]] = {}
    for row in dict.fromkeys(may_stay):
        rest = [other for other in ranked if other != row]
        copies_of[row] = _copies(scan, judge, row, rest, pairs)
        if len(copies_of[row]) == len(rest):
            break
    best = max(copies_of, key=lambda row: len(copies_of[row]))  # the first of equals
    return best, copies_of[best]


def _copies(scan: Scan, judge: Judge, best: int, rest: Sequence[int], pairs: Sequence[Pair]) -> set[int]:
    """Which of the rest show the same picture as the best: by a pair, or compared now."""
    direct = {row for pair in pairs if best in (pair.first, pair.second) for row in (pair.first, pair.second)}
    copies = {row for row in rest if row in direct or scan.sha256[row] == scan.sha256[best]}
    places = placements(best, pairs)
    guesses = [(row, places[row].overlay()) for row in rest if row in places and row not in copies]
    placed = [(row, guess, 0) for row, guess in guesses if guess is not None]
    placed += [each for each in _turned(pairs, places) if each[0] in rest and each[0] not in copies]
    with one_thread_each() as mapped:
        verdicts = list(mapped(lambda guess: judge(best, *guess), placed))
    return copies | {row for (row, *_), verdict in zip(placed, verdicts, strict=True) if verdict.same}


def _turned(pairs: Sequence[Pair], places: Mapping[int, Placement]) -> list[tuple[int, Overlay, int]]:
    """Rows that a turn lays over one of the placed ones which shows all of the best, with the guess and that turn."""
    guesses = []
    for pair in pairs:
        ends = ((pair.first, pair.second, pair.turned), (pair.second, pair.first, 360 - pair.turned))
        for here, there, turn in ends if pair.turned else ():
            overlay = places[here].overlay() if here in places and there not in places else None
            if overlay is not None and overlay.share >= TURNED_WHOLE and not overlay.mirrored:
                guesses.append((there, replace(overlay, box=WHOLE, share=1.0, mirrored=pair.mirrored), turn))
    return guesses


def find_alike(pairs: Sequence[Pair], groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """Images that look alike and are more than one picture, in sets; of a group of copies only what stays is named.

    What a collage holds is not alike for lying side by side in it, once it is dropped.
    """
    stays = {row: group.representative for group in groups for row in group.members}
    beside = [pair for pair in pairs if pair.collage is None or pair.collage not in stays]
    links = {(stays.get(pair.first, pair.first), stays.get(pair.second, pair.second)) for pair in beside}
    return [tuple(component) for component in components((a, b) for a, b in links if a != b)]


def components(links: Iterable[Rows]) -> list[list[int]]:
    """Connected components of at least two, by the smallest member.

    Example:
        >>> components([(3, 1), (5, 3), (8, 9)])
        [[1, 3, 5], [8, 9]]
    """
    links = list(links)
    sets = DisjointSet({row for link in links for row in link})
    for one, two in links:
        sets.merge(one, two)
    return sorted(sorted(members) for members in sets.subsets())
