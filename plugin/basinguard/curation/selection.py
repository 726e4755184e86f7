"""The most diverse few of a set that still show what it is about.

Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38 (1985):
each next image is the one that is farthest from all chosen before, so no chosen two are near while another is far.
It begins with the most typical image and never takes one that is unlike all others, or plain: they are not the concept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .decisions import Decision

UNLIKE = frozenset({"outlier", "blank", "dark"})  # findings of images that do not show the concept


def select_diverse(decisions: Sequence[Decision], vectors: NDArray[np.float32], count: int) -> list[Decision]:
    """Decisions that leave out all but `count` images, and say why each was chosen or not.

    Copies that are dropped already stay so. An image that a person refused to drop is chosen first. Images that do not
    show the concept are taken last, when there are no others.

    Args:
        decisions: one for each image.
        vectors: unit vectors of the images, [N, D], in the same order.
        count: how many to keep, at least 1; more than there are keeps all.
    """
    rows = [row for row, each in enumerate(decisions) if each.action != "drop"]
    insisted = [row for row in rows if "drop" in decisions[row].allowed]
    typical = [row for row in rows if row not in set(insisted) and not _unlike(decisions[row])]
    unlike = [row for row in rows if row not in set(insisted) and _unlike(decisions[row])]
    chosen = dict.fromkeys(insisted, "you decided that it stays")
    for candidates in (typical, unlike):
        _extend(chosen, candidates, decisions, vectors, count)
    return [
        each if each.action == "drop" else _decided(each, row, chosen, decisions, vectors, count)
        for row, each in enumerate(decisions)
    ]


def _unlike(decision: Decision) -> bool:
    return any(finding.code in UNLIKE for finding in decision.findings)


def _extend(
    chosen: dict[int, str],
    candidates: Sequence[int],
    decisions: Sequence[Decision],
    vectors: NDArray[np.float32],
    count: int,
) -> None:
    """Adds candidates by farthest-first traversal until `count` are chosen, each with its reason."""
    left = np.array(candidates, np.int64)
    if not len(left) or len(chosen) >= count:
        return
    if not chosen:
        middle = vectors[left].mean(0)
        first = int(left[np.argmax(vectors[left] @ middle)])
        chosen[first] = "the most typical image, nearest to the middle of the set"
    nearest = (vectors[left] @ vectors[list(chosen)].T).max(1)
    while len(chosen) < min(count, len(decisions)):
        nearest[np.isin(left, list(chosen))] = np.inf
        place = int(nearest.argmin())
        if np.isinf(nearest[place]):
            return
        row = int(left[place])
        chosen[row] = f"the least like those chosen before it (similarity {nearest[place]:.2f} to the nearest)"
        nearest = np.maximum(nearest, vectors[left] @ vectors[row])


def _decided(
    decision: Decision,
    row: int,
    chosen: dict[int, str],
    decisions: Sequence[Decision],
    vectors: NDArray[np.float32],
    count: int,
) -> Decision:
    if row in chosen:
        place = list(chosen).index(row) + 1
        said = f"number {place} of the {len(chosen)} most diverse: {chosen[row]}"
        reason = said if decision.action == "keep" else f"{decision.reason}; {said}"
        return decision.model_copy(update={"reason": reason})
    rows = list(chosen)
    similarities = vectors[rows] @ vectors[row]
    like = rows[int(similarities.argmax())]
    reason = (
        f"not among the {count} most diverse: most like {decisions[like].file_name!r}, which is "
        f"(similarity {similarities.max():.2f})"
    )
    if _unlike(decision):
        reason = f"not among the {count} most diverse: it is unlike the rest, so it does not show the concept"
    return decision.model_copy(update={"action": "drop", "reason": reason, "repeats": 0, "suggestion": ""})
