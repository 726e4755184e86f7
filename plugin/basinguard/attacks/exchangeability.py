"""Are the samples in use like those that the promise was measured on? A test martingale over conformal p-values.

Each similarity is ranked among all before it. While old and new samples are exchangeable, the ranks are independent and
uniform; when the new ones come nearer to the training images, small p-values pile up and the capital grows. It reaches
1 / delta with probability delta at most, whenever one looks.

Source: Vovk, Nouretdinov and Gammerman, "Testing Exchangeability On-Line", ICML 2003 (conformal p-values, simple
mixture of power bets); the mixture's integral in closed form by the lower incomplete gamma function.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc, gammaln

LOST = -700.0  # log capital that is as good as none: the integral is below the least double


class ConformalRanks:
    """P-values of scores as they come: small where a score is large among those before it.

    Args:
        seed: of the coin that breaks ties.

    Example:
        >>> ranks = ConformalRanks(seed=0)
        >>> [round(ranks.p_value(score), 2) for score in (0.1, 0.5, 0.3)]  # two of three scores lie at or below 0.3
        [0.84, 0.38, 0.47]
    """

    def __init__(self, seed: int = 0) -> None:
        self._sorted: list[float] = []
        self._coin = random.Random(seed)

    def p_value(self, score: float) -> float:
        """(scores above it + a random share of those equal to it, itself included) / scores so far, in (0, 1]."""
        insort(self._sorted, score)
        above = len(self._sorted) - bisect_right(self._sorted, score)
        equal = bisect_right(self._sorted, score) - bisect_left(self._sorted, score)
        return (above + (1 - self._coin.random()) * equal) / len(self._sorted)


def log_mixture(log_p: ArrayLike, n: ArrayLike) -> NDArray:
    """Log capital of the simple mixture after n p-values whose logarithms add up to `log_p`; 0 at the start.

    The integral over e in [0, 1] of prod e p^(e - 1), which is exp(S) gamma(n + 1, S) / S^(n + 1) with S = -log_p.
    """
    s, count = -np.asarray(log_p, float), np.asarray(n, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = s + gammaln(count + 1) + np.log(gammainc(count + 1, s)) - (count + 1) * np.log(s)
    return np.where(s > 0, np.maximum(grown, LOST), -np.log(count + 1))
