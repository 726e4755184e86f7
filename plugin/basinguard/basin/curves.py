"""From exits to numbers that can be compared: the curve with its band, width, median exit, estimated transition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..core import stats
from ..core.estimate import Estimate
from ..core.report_parts import Exit
from ..diffusion.noise_schedule import rule_timesteps


def risk_curve(
    exits: Sequence[Exit], timesteps: Tensor, clusters: Sequence[int] | None = None
) -> list[tuple[float, Estimate]]:
    """P(memorized | transition = t) at every grid timestep, ascending, with a band over the whole curve.

    Exits that the search left open by more than one grid step count from the timestep that was seen to reproduce.
    """
    grid = sorted(float(t) for t in rule_timesteps(timesteps))
    hits = [[e.reproduced_from(t) for t in grid] for e in exits]
    return list(zip(grid, stats.simultaneous_rates(hits, _captions(exits, clusters)), strict=True))


def mean_width(exits: Sequence[Exit], clusters: Sequence[int] | None = None) -> Estimate:
    """Mean basin width over all pairs, as a share of [0, T]; clusters are the captions where none are given.

    A pair that is never memorized counts 0. The value counts every other pair from the timestep that was seen to
    reproduce; the interval's upper end counts it from the one below, which was seen not to (0 for a pair that always
    is reproduced), because the true exit lies between the two.
    """
    captions = _captions(exits, clusters)
    estimate = stats.cluster_bootstrap([e.width for e in exits], captions)
    widest = stats.cluster_bootstrap([_widest(e) for e in exits], captions)
    return estimate.model_copy(update={"high": widest.high, "method": "cluster-bootstrap over interval-censored exits"})


def _widest(exit_: Exit) -> float:
    return 0.0 if exit_.timestep is None else 1 - (exit_.lower or 0.0) / 999


def mean_log_width(exits: Sequence[Exit], largest: float, clusters: Sequence[int] | None = None) -> Estimate:
    """Mean of log sigma(T) - log sigma(exit), 0 where nothing is memorized: the width that transfers between grids.

    Args:
        exits: from `ExitSearch.exits`.
        largest: sigma at the noisiest timestep.
        clusters: which exits belong together; the captions by default.
    """
    values = [0.0 if e.sigma is None else float(np.log(largest / e.sigma)) for e in exits]
    return stats.cluster_bootstrap(values, _captions(exits, clusters))


def median_exit(exits: Sequence[Exit], clusters: Sequence[int] | None = None) -> Estimate | None:
    """Median exit timestep of the pairs that memorize; None when none does."""
    captions = _captions(exits, clusters)
    inside = [(e.timestep, k) for e, k in zip(exits, captions, strict=True) if e.timestep is not None]
    if not inside:
        return None
    return stats.cluster_bootstrap([t for t, _ in inside], [caption for _, caption in inside], stats.median)


def static_transition(exits: Sequence[Exit], timesteps: Tensor, alpha: float) -> float | None:
    """The largest grid timestep up to which the share of memorized pairs stays within `alpha`; 999 if it always does.

    A point estimate for following a run; the promise that holds is made by `calibrate`. None when no transition is
    low enough.
    """
    boldest: float | None = None
    for t, rate in risk_curve(exits, timesteps):
        if rate.value > alpha:
            return boldest
        boldest = t
    return 999.0


def _captions(exits: Sequence[Exit], clusters: Sequence[int] | None) -> Sequence[int]:
    return [e.caption for e in exits] if clusters is None else clusters
