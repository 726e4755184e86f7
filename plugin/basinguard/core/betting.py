"""Evidence that grows with every sample and may be looked at after each: capital processes for a share of yes/no.

A gambler starts with 1 and bets against a hypothesis; as long as it is true the capital is a supermartingale, so it
ever reaches 1 / delta with probability delta at most (Ville's inequality), whenever one looks and however one decides
to stop. The bets here are mixed over every risk on the other side, with Jeffreys' Beta(1/2, 1/2) cut off at the
hypothesis: no bet has to be tuned, and the capital depends on two counts alone.

What the hypotheses are about: the chance of a copy, given all samples before, at *every* sample. Captions of unlike
risk belong in random order.

Source: Waudby-Smith and Ramdas, JRSS B 86 (2024), arXiv 2010.09686, section 4 (betting); mixture of one-sided bets in
closed form: Howard, Ramdas, McAuliffe and Sekhon, Ann. Statist. 49 (2021), arXiv 1810.08240, section 3.2;
Ville, "Etude critique de la notion de collectif" (1939).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betaln, xlog1py, xlogy

from .estimate import Estimate

PRIOR = 0.5  # Jeffreys' prior is Beta(1/2, 1/2)
HALVINGS = 60  # of [0, 1] when a bound is looked for: past the last bit of a double


def payoff(outcome: ArrayLike, risk: ArrayLike, stake: ArrayLike) -> NDArray:
    """What 1 becomes when `stake` is put on an outcome in [0, 1] against a mean of `risk`: 1 + stake (x - risk).

    A stake in (0, 1 / risk) wins on copies, one in (-1 / (1 - risk), 0) on their absence.

    Source: Waudby-Smith and Ramdas, section 4, the factor of the capital process.
    """
    return 1 + np.asarray(stake, float) * (np.asarray(outcome, float) - np.asarray(risk, float))


def stake_for(target: ArrayLike, risk: ArrayLike) -> NDArray:
    """The stake that grows fastest where the true risk is `target`: (target - risk) / (risk (1 - risk)).

    Source: Kelly, Bell System Technical Journal 35 (1956); Waudby-Smith and Ramdas, section 4, for yes/no outcomes.
    """
    m = np.asarray(risk, float)
    return (np.asarray(target, float) - m) / (m * (1 - m))


def log_capital_below(hits: ArrayLike, n: ArrayLike, risk: ArrayLike) -> NDArray:
    """Log evidence against "the risk is at least `risk`", after `hits` copies among n samples; 0 at the start.

    Example:
        >>> bool(log_capital_below(0, 150, 0.05) > np.log(20))
        True
    """
    return _log_capital(hits, n, risk, betainc)


def log_capital_above(hits: ArrayLike, n: ArrayLike, risk: ArrayLike) -> NDArray:
    """Log evidence against "the risk is at most `risk`", after `hits` copies among n samples; 0 at the start.

    Example:
        >>> bool(log_capital_above(15, 100, 0.05) > np.log(20))
        True
    """
    return _log_capital(hits, n, risk, betaincc)


def _log_capital(hits: ArrayLike, n: ArrayLike, risk: ArrayLike, share: np.ufunc) -> NDArray:
    """log of the prior's mean of (p / m)^hits ((1 - p) / (1 - m))^(n - hits) over the p on one side of m."""
    h, m = np.asarray(hits, float), np.asarray(risk, float)
    a, b = h + PRIOR, np.asarray(n, float) - h + PRIOR
    with np.errstate(divide="ignore"):  # no mass at all on that side: the capital is 0
        mixed = betaln(a, b) + np.log(share(a, b, m)) - betaln(PRIOR, PRIOR) - np.log(share(PRIOR, PRIOR, m))
    return mixed - xlogy(h, m) - xlog1py(b - PRIOR, -m)


def anytime_upper(hits: ArrayLike, n: ArrayLike, delta: float) -> NDArray:
    """Upper bound of a constant risk that holds at all n at once with probability 1 - delta.

    The largest risk that the evidence has not refuted; 1 before the first sample.
    """
    h, count = np.broadcast_arrays(np.asarray(hits, float), np.asarray(n, float))
    low, high = h / np.maximum(count, 1), np.ones(h.shape)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        refuted = log_capital_below(h, count, np.clip(middle, 1e-12, 1 - 1e-12)) >= -np.log(delta)
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def anytime_lower(hits: ArrayLike, n: ArrayLike, delta: float) -> NDArray:
    """Lower bound of a constant risk that holds at all n at once with probability 1 - delta."""
    return 1 - anytime_upper(np.asarray(n) - np.asarray(hits), n, delta)  # the prior is its own mirror image


def anytime_interval(hits: int, n: int, level: float = 0.95) -> Estimate:
    """Rate of yes/no outcomes with an interval that may be read after every sample, each end at half of 1 - level.

    Raises:
        ValueError: no outcome, or more hits than outcomes.

    Example:
        >>> print(anytime_interval(3, 40))
        0.075 [0.00448, 0.265] (n=40)
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"anytime_interval of {hits} hits among {n} outcomes: expected 0 <= hits <= n and n >= 1")
    tail = (1 - level) / 2
    low, high = float(anytime_lower(hits, n, tail)), float(anytime_upper(hits, n, tail))
    return Estimate(value=hits / n, low=low, high=high, level=level, n=n, method="betting, anytime-valid")
