"""The stopping rules behind every promise: test in a fixed order until the first failure.

`fixed_sequence` begins with the safest. `climb` begins where the search expects the proof to succeed, goes up from
there with the same share of delta, and down with what is left of it where that was too bold: what is safer than the
product to ship is not proven for the order's sake.

Source: Learn-then-Test with fixed sequence testing, arXiv 2110.01052, section 3.2 (Proposition 6); several sequences
with shares of delta: the same, section 3.3, and Bretz et al., Statist. Med. 28 (2009), 586-604.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from .candidate import AnyCandidate
from .terms import FIRST

Step = TypeVar("Step")


def fixed_sequence(candidates: Iterable[AnyCandidate], delta: float) -> Iterator[AnyCandidate]:
    """Every candidate with its verdict in `proven`, up to and including the first that cannot be proven.

    P(any of the proven ones has a risk above alpha) <= delta, without a correction for their number. The next
    candidate is measured only when it is asked for.

    Args:
        candidates: in an order that does not depend on these measurements, the safest first.
        delta: the chance that the promise is broken.

    Example:
        >>> from basinguard.calibration.candidate import Candidate
        >>> tried = (Candidate.measured([False] * n, range(n), alpha=0.05) for n in (90, 60, 30, 99))
        >>> [candidate.proven for candidate in fixed_sequence(tried, 0.05)]
        [True, True, False]
    """
    for candidate in candidates:
        tested = replace(candidate, proven=candidate.p_value <= delta)
        yield tested
        if not tested.proven:
            return


def proven(candidates: Iterable[AnyCandidate], delta: float) -> list[AnyCandidate]:
    """Those of a fixed sequence that are proven."""
    return [candidate for candidate in fixed_sequence(candidates, delta) if candidate.proven]


def climb(
    ladder: Sequence[Step], start: int, measure: Callable[[Step, float], AnyCandidate], delta: float
) -> Iterator[AnyCandidate]:
    """Tests a ladder from the middle, each candidate with its verdict in `proven`.

    The first is tested at `FIRST` of delta; where it is proven, so are those above it, at the same, until the first
    failure. Where it fails, the next below takes `FIRST` of what is left, and the lowest all of it.
    P(any of the proven ones has a risk above alpha) <= delta.

    Args:
        ladder: what can be measured, the safest first, in an order that does not depend on these measurements.
        start: where to begin; likewise.
        measure: a step of it, with the error that its test may make.
        delta: the chance that the promise is broken.
    """
    left, below = delta, start
    while below >= 0:
        share = left if below == 0 else FIRST * left
        above = ladder[below:] if below == start else ladder[below : below + 1]
        tested = list(fixed_sequence((measure(step, share) for step in above), share))
        yield from tested
        if tested[0].proven:
            return
        left, below = left - share, below - 1
