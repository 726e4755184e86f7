"""Where one copy lies in another, worked out along other copies: a guess for two that were never laid together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ..similarity.registration import Overlay
from .duplicates import Pair

INSIDE = 0.02  # of a side by which a piece may stick out of the picture that it lies in


@dataclass(frozen=True)
class Placement:
    """Places of one picture as places of another, both as shares of the sides: x -> across * x + left, likewise y.

    `across` is negative where one of them is mirrored.
    """

    across: float = 1.0
    left: float = 0.0
    down: float = 1.0
    top: float = 0.0

    def after(self, first: Placement) -> Placement:
        """This placement of what `first` placed."""
        return Placement(
            self.across * first.across,
            self.across * first.left + self.left,
            self.down * first.down,
            self.down * first.top + self.top,
        )

    def inverse(self) -> Placement:
        """From the other picture back to this one."""
        return Placement(1 / self.across, -self.left / self.across, 1 / self.down, -self.top / self.down)

    def overlay(self) -> Overlay | None:
        """The second of a pair in the first, or the first in the second; None where neither holds the other."""
        for swapped, place in ((False, self), (True, self.inverse())):
            left, right = sorted((place.left, place.left + place.across))
            top, bottom = sorted((place.top, place.top + place.down))
            if min(left, top) >= -INSIDE and max(right, bottom) <= 1 + INSIDE:
                box = max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom)
                return Overlay(1.0, (right - left) * (bottom - top), self.across < 0, swapped, box)
        return None


def of_pair(pair: Pair) -> Placement | None:
    """Places of the second picture as places of the first; None where one is turned, or it was not measured."""
    if pair.kind == "exact":
        return Placement()
    if pair.box is None or pair.turned:
        return None
    left, top, right, bottom = pair.box
    across, start = (left - right, right) if pair.mirrored else (right - left, left)
    placement = Placement(across, start, bottom - top, top)
    return placement.inverse() if pair.swapped else placement


def placements(row: int, pairs: Iterable[Pair]) -> dict[int, Placement]:
    """For each image that same pairs connect with `row`: its places as places of that image, along the fewest pairs."""
    links: dict[int, list[tuple[int, Placement]]] = {}
    for pair in pairs:
        placement = of_pair(pair) if pair.same else None
        if placement is not None:
            links.setdefault(pair.first, []).append((pair.second, placement))
            links.setdefault(pair.second, []).append((pair.first, placement.inverse()))
    placed, waiting = {row: Placement()}, deque([row])
    while waiting:
        here = waiting.popleft()
        for there, placement in links.get(here, ()):
            if there not in placed:
                placed[there] = placed[here].after(placement)
                waiting.append(there)
    return placed
