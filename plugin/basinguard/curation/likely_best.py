"""Which of several likely copies will probably stay, from thumbnails and headers alone.

Every copy must be compared with the one that stays. Where that one is guessed right, each is compared once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from .picture_quality import SHAPE, TINTED, most_alike
from .scan import Scan

Guess = tuple[float, ...]  # larger is likelier


def likely_best(scan: Scan, rows: Sequence[int], fits: Iterable[tuple[int, int, bool]]) -> list[Guess]:
    """How likely each of some rows of a scan is the copy that stays among those that it seems to be a copy of.

    Args:
        scan: thumbnails and what the files say.
        rows: of the scan, N different ones.
        fits: numbers of two of the N that seem to show one picture, and whether one of them is mirrored.
    """
    fits = list(fits)
    usual = np.ones((len(rows), 3), bool)  # way, shape and colours
    links: dict[int, list[tuple[int, bool]]] = {}
    sets = DisjointSet({number for one, two, _ in fits for number in (one, two)})
    for one, two, mirrored in fits:
        links.setdefault(one, []).append((two, mirrored))
        links.setdefault(two, []).append((one, mirrored))
        sets.merge(one, two)
    for members in sets.subsets():
        numbers = sorted(members)
        of_scan = [rows[number] for number in numbers]
        usual[numbers, 0] = _usual_ways(numbers, links)
        usual[numbers, 1] = most_alike(np.log(scan.aspects[of_scan])[:, None], SHAPE)
        usual[numbers, 2] = most_alike(scan.thumbs[of_scan].mean((1, 2)), TINTED)
    return [_guess(scan, row, of_row) for row, of_row in zip(rows, usual.tolist(), strict=True)]


def _guess(scan: Scan, row: int, usual: Sequence[bool]) -> Guess:
    facts = scan.items[row].facts
    return round(float(scan.inside[row]), 1), *usual, facts.width * facts.height, facts.bytes


def _usual_ways(numbers: Sequence[int], links: dict[int, list[tuple[int, bool]]]) -> list[bool]:
    """Which of some linked copies stand as at least half of them do, and are not mirrored."""
    flipped, waiting = {numbers[0]: False}, deque([numbers[0]])
    while waiting:
        here = waiting.popleft()
        for there, mirrored in links[here]:
            if there not in flipped:
                flipped[there] = flipped[here] != mirrored
                waiting.append(there)
    many = 2 * sum(flipped.values())
    return [many >= len(numbers) if flipped[number] else many <= len(numbers) for number in numbers]
