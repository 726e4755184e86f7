"""The one stopping rule behind every promise: test in a fixed order, safest first, until the first failure.

Source: Learn-then-Test with fixed sequence testing, arXiv 2110.01052, section 3.2 (Proposition 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .candidate import AnyCandidate


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
