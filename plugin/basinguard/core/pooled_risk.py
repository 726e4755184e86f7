"""Risk at the newest of several probes that each drew few samples: earlier ones count as far as risk stands still.

The model, which is stated because nothing but a model lets an earlier sample speak of a later network: at every probe
the samples are copies with the same probability, and between two probes the angle arcsin(sqrt(risk)) takes a normal
step, or, rarely, lands anywhere. In this angle a sample is worth the same at every risk, and Jeffreys' prior is flat.
How long the steps are is not known beforehand: three lengths are tried, and the samples say which of them count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .estimate import Estimate

STEPS = (0.05, 0.15, 0.45)  # radians a probe: risk 0.10 becomes up to 0.13, 0.20, 0.49 within a standard deviation
JUMP = 0.05  # probability of landing anywhere
POINTS = 128  # of the grid
ANGLES = (np.arange(POINTS) + 0.5) / POINTS * np.pi / 2
METHOD = "random walk of arcsin(sqrt(risk)), filtered; equal tails"


def pooled_risk(counts: Sequence[tuple[float, float]], level: float = 0.95) -> Estimate:
    """Median and interval of the risk at the newest probe.

    Args:
        counts: copies and samples of each probe, in their order; neither need be whole (a design effect divides both).
        level: probability inside the interval.

    Returns:
        With the number of samples of all probes but the first, which is the base model's; of the first where it is
        alone.

    Raises:
        ValueError: no probe, or more copies than samples.

    Source: Kitagawa, "Non-Gaussian State-Space Modeling of Nonstationary Time Series" (JASA 1987), section 2; the ends
    as Brown, Cai and DasGupta modify Jeffreys' interval (Statistical Science 2001), section 4.1.2.
    """
    if not counts or any(not 0 <= hits <= n for hits, n in counts):
        raise ValueError(f"pooled_risk({list(counts)}): expected (copies, samples) of one probe or more")
    weights = _filtered(counts)
    below, tail = np.concatenate([[0.0], np.cumsum(weights)]), (1 - level) / 2
    angles = np.interp([0.5, tail, 1 - tail], below, np.linspace(0, np.pi / 2, POINTS + 1))
    value, low, high = (np.sin(angles) ** 2).tolist()
    likeliest = int(weights.argmax())  # at an end, the interval reaches it: else it would never hold a risk of 0
    low, high = 0.0 if likeliest == 0 else low, 1.0 if likeliest == POINTS - 1 else high
    samples = round(sum(n for _, n in (counts[1:] or counts)))
    return Estimate(value=value, low=low, high=high, level=level, n=max(1, samples), method=METHOD)


def _filtered(counts: Sequence[tuple[float, float]]) -> NDArray:
    """Probability of each angle at the last probe, given all of them."""
    joint = np.full((len(STEPS), POINTS), 1 / (len(STEPS) * POINTS))
    log_copy, log_other = 2 * np.log(np.sin(ANGLES)), 2 * np.log(np.cos(ANGLES))
    for place, (hits, n) in enumerate(counts):
        if place:
            walked = np.matmul(joint[:, None], _kernels())[:, 0]
            joint = (1 - JUMP) * walked + JUMP * joint.sum(1, keepdims=True) / POINTS
        log_likelihood = hits * log_copy + (n - hits) * log_other
        joint = joint * np.exp(log_likelihood - log_likelihood.max())
        joint /= joint.sum()
    return joint.sum(0)


@cache
def _kernels() -> NDArray:
    """Probability of the next angle given this one, [steps, this, next]: normal, reflected at both ends."""
    apart, together = ANGLES[:, None] - ANGLES, ANGLES[:, None] + ANGLES
    ways = np.stack([apart, together, np.pi - together])
    kernels = np.stack([np.exp(-((ways / step) ** 2) / 2).sum(0) for step in STEPS])
    return kernels / kernels.sum(2, keepdims=True)
