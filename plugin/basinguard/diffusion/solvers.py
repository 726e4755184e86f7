"""Deterministic samplers as what they are on a fixed grid: a linear recurrence, one matrix for each evaluation.

The state of a sample is x and what a multistep sampler remembers of earlier evaluations. After the model's prediction
eps at x, the next state is a fixed matrix times (x, memory, eps). So samples of one batch may stand at different
places, and a branch off a trajectory carries its history as a stock sampler would. Everything is in the
variance-preserving form x = signal * x_0 + noise * eps; flow matching is the same with signal = 1 - sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Matrix = list[list[float]]  # rows: next x and memory; columns: x, memory, eps
Recipe = tuple[list[int], list[Matrix]]  # grid position and matrix of every evaluation


def _ddim(a: Sequence[float], s: Sequence[float]) -> Recipe:
    """Song et al., arXiv 2010.02502, eq. 12 with sigma = 0; Euler's method in x / signal is the same line."""
    steps = len(a) - 1
    return list(range(steps)), [[list(_transfer(a, s, k))] for k in range(steps)]


def _transfer(a: Sequence[float], s: Sequence[float], k: int) -> tuple[float, float]:
    """Factors of x and eps when a constant eps carries x from grid position k to k + 1."""
    return a[k + 1] / a[k], s[k + 1] - a[k + 1] * s[k] / a[k]


def _heun(a: Sequence[float], s: Sequence[float]) -> Recipe:
    """Karras et al., arXiv 2206.00364, algorithm 1 without noise, as diffusers orders it: predict, then correct."""
    position: list[int] = []
    matrices: list[Matrix] = []
    for k in range(len(a) - 1):
        if k > 0:  # the corrector of the step before, evaluated where that step arrived
            half = _transfer(a, s, k - 1)[1] / 2
            position.append(k)
            matrices.append([[1, -half, half], [0, 0, 0]])
        position.append(k)
        x, eps = _transfer(a, s, k)
        matrices.append([[x, 0, eps], [0, 0, 1]])
    return position, matrices


def _dpmpp_2m(a: Sequence[float], s: Sequence[float]) -> Recipe:
    """Lu et al., arXiv 2211.01095, algorithm 2 (midpoint), the first and last step of first order."""
    steps = len(a) - 1
    matrices: list[Matrix] = []
    level = [math.log(a[k] / s[k]) for k in range(steps)]
    for k in range(steps):
        shrink = a[k] * s[k + 1] / (s[k] * a[k + 1])  # exp(-h); 0 at the clean end
        phi, of_d, of_old = a[k + 1] * (1 - shrink), 1.0, 0.0
        if 0 < k < steps - 1:
            ratio = (level[k] - level[k - 1]) / (level[k + 1] - level[k])
            of_d, of_old = 1 + 0.5 / ratio, -0.5 / ratio
        d_x, d_eps = 1 / a[k], -s[k] / a[k]  # the predicted clean latents in terms of x and eps
        matrices.append(
            [[s[k + 1] / s[k] + phi * of_d * d_x, phi * of_old, phi * of_d * d_eps], [d_x, 0, d_eps]],
        )
    return list(range(steps)), matrices


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _pndm(a: Sequence[float], s: Sequence[float]) -> Recipe:
    """Liu et al., arXiv 2202.09778, as Stable Diffusion uses it (PLMS): the first step is taken twice."""
    steps = len(a) - 1
    x, eps = _transfer(a, s, 0)
    position = [0]
    once: Matrix = [[x, 0, 0, 0, eps], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    matrices = [once]
    if steps > 1:  # once more to the same place, now with the mean of both predictions
        again: Matrix = [[1, -eps / 2, 0, 0, eps / 2], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
        position.append(1)
        matrices.append(again)
    for k in range(1, steps):
        x, eps = _transfer(a, s, k)
        now, *older = ADAMS_BASHFORTH[min(k, 3)]
        weights = [eps * w for w in older] + [0.0] * (3 - len(older))
        position.append(k)
        matrices.append([[x, *weights, eps * now], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    return position, matrices


SOLVERS: dict[str, Callable[[Sequence[float], Sequence[float]], Recipe]] = {
    "ddim": _ddim,
    "euler": _ddim,
    "heun": _heun,
    "dpm++2m": _dpmpp_2m,
    "pndm": _pndm,
}
SCALED_START = ("euler", "heun")  # from noise * sigma_max, which is noise * noise(T) here; flows start from noise
