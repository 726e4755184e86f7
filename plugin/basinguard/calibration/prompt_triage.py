"""Which prompts pull at all? A threshold on the first gap, with the share it gets wrong on prompts it has not seen.

Harmless prompts lose a little alignment to every mitigation; `guidance.triage` leaves them plain CFG. It is off by
default: a missed prompt is an unprotected one, so the miss rate is part of the result.

Source: the first limitation named in arXiv 2411.16738; the score is the first-step magnitude of arXiv 2407.21720.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.record import TriageResult
from ..core.stats import rate

__all__ = ["TriageResult", "calibrate_triage"]


def calibrate_triage(
    pulling: Sequence[tuple[int, float]],
    harmless: Sequence[tuple[int, float]],
    *,
    timestep: float,
    wanted_miss: float = 0.05,
    level: float = 0.95,
) -> TriageResult:
    """The largest threshold that misses `wanted_miss` of the pulling pairs; its rates on the other half of prompts.

    Args:
        pulling: (prompt, first gap) of pairs that plain CFG reproduces; prompts are integers.
        harmless: the same of pairs that it does not; a prompt may have pairs of both kinds.
        timestep: where the gaps were read.
        wanted_miss: in [0, 1).
        level: of both intervals.

    Raises:
        ValueError: fewer than two prompts of a kind, so that there is no other half.

    Example:
        >>> result = calibrate_triage([(i, 1 + i % 5) for i in range(40)], [(i, 0.5) for i in range(40)], timestep=999)
        >>> result.threshold, str(result.miss)
        (0.9999999999999999, '0 [0, 0.161] (n=20)')
    """
    if not 0 <= wanted_miss < 1:
        raise ValueError(f"wanted_miss={wanted_miss}: expected a share in [0, 1)")
    choosing = _half({p for p, _ in pulling}, {p for p, _ in harmless})
    fit, check = ([pair for pair in pulling if (pair[0] in choosing) == side] for side in (True, False))
    quiet = [pair for pair in harmless if pair[0] not in choosing]
    ordered = np.sort([gap for _, gap in fit])
    threshold = float(np.nextafter(ordered[int(wanted_miss * len(ordered))], 0))
    prompts, gaps = _columns(quiet)
    false_alarm = rate(gaps > threshold, prompts, level)
    prompts, gaps = _columns(check)
    miss = rate(gaps <= threshold, prompts, level)
    return TriageResult(
        threshold=threshold, timestep=timestep, false_alarm=false_alarm, miss=miss, wanted_miss=wanted_miss
    )


def _half(pulling: set[int], harmless: set[int]) -> set[int]:
    """Every other prompt, of those that pull at least once and of those that never do."""
    for kind, prompts in (("pulling", pulling), ("harmless", harmless)):
        if len(prompts) < 2:
            raise ValueError(f"{len(prompts)} {kind} prompts: at least 2 are needed, one half to choose the threshold")
    never = sorted(harmless - pulling)
    chosen = {*sorted(pulling)[::2], *never[::2]}
    if harmless <= chosen:
        raise ValueError("every harmless prompt is needed to choose the threshold; give more harmless prompts")
    return chosen


def _columns(pairs: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    prompts, gaps = zip(*pairs, strict=True)
    return np.array(prompts), np.array(gaps, float)
