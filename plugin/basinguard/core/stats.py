"""One interval, bound or test per function, each naming its proposition. numpy and scipy only.

No bare float leaves this module as a result: an `Estimate` carries interval, level, n and method. Too few
observations is an error that says how many there were, never a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from .estimate import Estimate

BOOTSTRAP_DRAWS = 2000
DRAWN_AT_ONCE = 4_000_000  # values of a bootstrap held at once, 32 MB


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Rate of independent yes/no outcomes with Wilson's score interval.

    Source: Wilson, JASA 22 (1927), p. 209; scipy's `proportion_ci(method="wilson")`.

    Example:
        >>> print(wilson(3, 40))
        0.075 [0.0258, 0.199] (n=40)
    """
    _require(n >= 1, f"wilson needs at least 1 outcome, got {n}")
    test = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(value=successes / n, low=test.low, high=test.high, level=level, n=n, method="wilson")


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Rate of independent yes/no outcomes with the exact (Clopper-Pearson) interval.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    _require(n >= 1, f"clopper_pearson needs at least 1 outcome, got {n}")
    test = scipy_stats.binomtest(int(successes), int(n)).proportion_ci(level, method="exact")
    return Estimate(value=successes / n, low=test.low, high=test.high, level=level, n=n, method="clopper-pearson")


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    statistic: Callable[[NDArray], NDArray] = np.mean,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of clustered values; whole clusters are drawn again, so seeds of one prompt stay together.

    The percentiles are taken further out for few clusters, where plain ones cover too rarely.

    Args:
        values: observations, shape [N].
        clusters: which cluster each belongs to, shape [N].
        statistic: reduces the last axis of an array, such as `p95` and `median` below.
        level: coverage, in (0, 1).
        seed: of the resampling, so that a report is reproducible.

    Returns:
        An `Estimate` whose n is the number of clusters; with a single cluster, of its values.

    Raises:
        ValueError: no values, different lengths, non-finite values.

    Source: Davison and Hinkley, "Bootstrap Methods" (1997), section 3.8; expanded percentile interval: Hesterberg,
    The American Statistician 69 (2015), section 5.3.
    """
    v, c = np.asarray(values, float), np.asarray(clusters)
    _require(v.ndim == 1 and v.shape == c.shape, f"values {v.shape} and clusters {c.shape} must be equally long lists")
    _require(len(v) > 0, "cluster_bootstrap needs at least 1 value, got 0")
    _require(bool(np.isfinite(v).all()), f"{int((~np.isfinite(v)).sum())} of {len(v)} values are not finite")
    groups = [v[c == name] for name in np.unique(c)]
    if len(groups) == 1:
        groups = list(v[:, None])  # one cluster has no spread between clusters; its members are all there is to draw
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(groups), size=(BOOTSTRAP_DRAWS, len(groups)))
    if statistic is np.mean:  # most calls; a hundred times faster than drawing every value
        sums, sizes = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
        replicas = sums[draws].sum(1) / sizes[draws].sum(1)
    else:
        replicas = np.concatenate([statistic(rows) for rows in _drawn(groups, draws)])
    tail = _expanded_tail(level, len(groups))
    low, high = np.quantile(replicas, [tail, 1 - tail])
    point = float(statistic(v))
    return Estimate(
        value=point, low=min(low, point), high=max(high, point), level=level, n=len(groups), method="cluster-bootstrap"
    )


def _drawn(groups: Sequence[NDArray], draws: NDArray) -> Iterator[NDArray]:
    """The values of every draw, [draws, N]: many at once where the groups are of one size, else one by one."""
    if len({len(group) for group in groups}) > 1:
        yield from (np.concatenate([groups[i] for i in row])[None] for row in draws)
        return
    values = np.stack(groups)
    parts = min(len(draws), 1 + draws.size * values.shape[1] // DRAWN_AT_ONCE)
    for part in np.array_split(draws, parts):
        yield values[part].reshape(len(part), -1)


def p95(values: NDArray) -> NDArray:
    """95th percentile along the last axis."""
    return np.asarray(np.quantile(values, 0.95, axis=-1))


def median(values: NDArray) -> NDArray:
    """Median along the last axis."""
    return np.asarray(np.median(values, axis=-1))


def _expanded_tail(level: float, n: int) -> float:
    """Tail probability of a percentile interval for n units, so that it is as wide as Student's t asks for."""
    if n < 2:
        return (1 - level) / 2
    t = float(scipy_stats.t.ppf((1 + level) / 2, n - 1))
    return float(scipy_stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))


def rate(hits: ArrayLike, clusters: ArrayLike, level: float = 0.95) -> Estimate:
    """Share of hits, clustered by prompt: Wilson's interval at the effective number of outcomes (design effect).

    A bootstrap of a rate that is 0 or 1 has no width; Wilson's interval at n / deff keeps one. With clusters of
    equal size m, deff = 1 + (m - 1) * rho, and rho is the intra-cluster correlation, not below 0.

    Source: Kish, "Survey Sampling" (1965), section 5.4; Korn and Graubard, Survey Methodology 24 (1998).
    """
    h, c = np.asarray(hits, float), np.asarray(clusters)
    _require(h.ndim == 1 and h.shape == c.shape and len(h) > 0, f"hits {h.shape} and clusters {c.shape} do not fit")
    p = float(h.mean())
    low, high = _score_interval(p, len(h) / design_effect(h, c), level)
    return Estimate(value=p, low=low, high=high, level=level, n=len(h), method="wilson at n/deff, clustered by prompt")


def _score_interval(p: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's interval around a share `p` of `n` outcomes, n not necessarily whole."""
    z = float(scipy_stats.norm.ppf((1 + level) / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n**2))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def design_effect(values: NDArray, clusters: NDArray) -> float:
    """How many times more outcomes a clustered sample needs: 1 + (m - 1) * rho, at least 1 (Kish 1965, section 5.4)."""
    names, inverse, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    total, groups = len(values), len(names)
    if groups < 2 or total == groups or values.var() == 0:
        return 1.0
    means = np.bincount(inverse, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (groups - 1)
    within = float(((values - means[inverse]) ** 2).sum()) / (total - groups)
    m = (total - float((sizes**2).sum()) / total) / (groups - 1)
    rho = (between - within) / (between + (m - 1) * within) if between + (m - 1) * within > 0 else 1.0
    return float(max(1.0, 1 + (m - 1) * rho))


def simultaneous_rates(hits: ArrayLike, clusters: ArrayLike, level: float = 0.95) -> list[Estimate]:
    """Column means of `hits` with a band that covers all of them at once.

    Where every row's hits are ordered along the columns, the means are an empirical distribution function and the
    Dvoretzky-Kiefer-Wolfowitz band holds for the whole curve. Where some row's are not, each column gets Wilson's
    interval at level 1 - (1 - level) / columns (Bonferroni), which holds for any rows. Clustered rows count as
    n / deff, with the largest design effect of any column.

    Args:
        hits: booleans, [rows, thresholds].
        clusters: which cluster each row belongs to, [rows].

    Source: Massart, Ann. Probab. 18 (1990), corollary 1; design effect: Kish (1965), section 5.4.
    """
    h, c = np.asarray(hits, float), np.asarray(clusters)
    _require(h.ndim == 2 and len(h) == len(c) > 0, f"hits {h.shape} and clusters {c.shape} do not fit")
    effective = len(h) / max((design_effect(column, c) for column in h.T), default=1.0)
    steps = np.diff(h, axis=1)
    if (steps >= 0).all() or (steps <= 0).all():
        half = math.sqrt(math.log(2 / (1 - level)) / (2 * effective))
        ends = [(max(0.0, p - half), min(1.0, p + half)) for p in h.mean(0).tolist()]
        method = "DKW band over all thresholds at n/deff, clustered by prompt"
    else:
        ends = [_score_interval(p, effective, 1 - (1 - level) / h.shape[1]) for p in h.mean(0).tolist()]
        method = "wilson at n/deff, Bonferroni over all thresholds (rows not ordered), clustered by prompt"
    return [
        Estimate(value=p, low=low, high=high, level=level, n=len(h), method=method)
        for p, (low, high) in zip(h.mean(0).tolist(), ends, strict=True)
    ]


def binomial_p_value(hits: int, n: int, alpha: float) -> float:
    """P(Binomial(n, alpha) <= hits): exact p-value of "the risk is above alpha" for independent outcomes.

    Also valid when every caption has its own risk and seeds are drawn independently for each: for hits below
    n * alpha - 1 the lower tail of a sum of unlike Bernoulli outcomes is at most the binomial one with the same mean.

    Source: Hoeffding, Ann. Math. Statist. 27 (1956), Theorem 4; used in Learn-then-Test, arXiv 2110.01052, section 3.

    Example:
        >>> round(binomial_p_value(0, 59, 0.05), 4)
        0.0485
    """
    _require(n >= 1 and 0 <= hits <= n, f"need 0 <= hits <= n and n >= 1, got hits={hits}, n={n}")
    _require(0 < alpha < 1, f"alpha must lie in (0, 1), got {alpha}")
    if hits > n * alpha - 1 and hits > 0:
        return 1.0  # outside the range of Hoeffding's theorem: no evidence rather than a doubtful number
    return float(scipy_stats.binom.cdf(hits, n, alpha))


def pairs_needed(alpha: float, delta: float, hits: int = 0) -> int:
    """Smallest n for which `hits` hits among n outcomes prove a risk of at most alpha with confidence 1 - delta.

    Example:
        >>> pairs_needed(0.05, 0.05)
        59
    """
    _require(0 < alpha < 1 and 0 < delta < 1, f"alpha and delta must lie in (0, 1), got {alpha} and {delta}")
    n = max(1, math.ceil((hits + 1) / alpha) if hits else 1)
    while binomial_p_value(hits, n, alpha) > delta:
        n += 1
    return n


def largest_proven(alpha: float, delta: float, n: int) -> int:
    """The most hits among n outcomes that still prove a risk of at most alpha with confidence 1 - delta; -1 for none.

    Example:
        >>> largest_proven(0.1, 0.05, 96), largest_proven(0.05, 0.05, 20)
        (4, -1)
    """
    passing = [hits for hits in range(int(n * alpha) + 1) if binomial_p_value(hits, n, alpha) <= delta]
    return max(passing, default=-1)


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties counting half (Mann-Whitney U / (n m))."""
    p, q = np.asarray(positives, float), np.asarray(negatives, float)
    _require(len(p) > 0 and len(q) > 0, f"auc needs both groups, got {len(p)} positives and {len(q)} negatives")
    return float(scipy_stats.mannwhitneyu(p, q).statistic / (len(p) * len(q)))


def auc_interval(positives: ArrayLike, negatives: ArrayLike, level: float = 0.95) -> Estimate:
    """`auc` with DeLong's interval, on the logit scale so that it stays within [0, 1].

    An AUC of 0 or 1 has no spread of its own; it gets the bound that an exact test on min(n, m) would give.

    Source: DeLong et al., Biometrics 44 (1988); logit scale: Pepe, "The Statistical Evaluation of Medical Tests"
    (2003), section 5.3.
    """
    p, q = np.asarray(positives, float), np.asarray(negatives, float)
    value, n = auc(p, q), min(len(p), len(q))
    wins = (p[:, None] > q).astype(float) + 0.5 * (p[:, None] == q)
    spread = wins.mean(1).var(ddof=1) / len(p) + wins.mean(0).var(ddof=1) / len(q) if n > 1 else 0.0
    if spread > 0 and 0 < value < 1:
        z = float(scipy_stats.norm.ppf((1 + level) / 2))
        middle, half = math.log(value / (1 - value)), z * math.sqrt(spread) / (value * (1 - value))
        low, high = 1 / (1 + math.exp(-middle + half)), 1 / (1 + math.exp(-middle - half))
    else:
        tail = ((1 - level) / 2) ** (1 / n)
        low, high = (0.0, 1 - tail) if value == 0 else (tail, 1.0) if value == 1 else (0.0, 1.0)
    return Estimate(value=value, low=low, high=high, level=level, n=n, method="DeLong, logit scale")


def mean_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean of `first` minus mean of `second`, two independent groups, each drawn again (bootstrap).

    Source: Davison and Hinkley, "Bootstrap Methods" (1997), section 3.1 (percentile interval).
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    _require(len(a) > 0 and len(b) > 0, f"difference needs both groups, got {len(a)} and {len(b)} values")
    _require(bool(np.isfinite(a).all() and np.isfinite(b).all()), "difference needs finite values")
    rng = np.random.default_rng(seed)
    means = [v[rng.integers(len(v), size=(BOOTSTRAP_DRAWS, len(v)))].mean(1) for v in (a, b)]
    low, high = np.quantile(means[0] - means[1], [(1 - level) / 2, (1 + level) / 2])
    point, n = float(a.mean() - b.mean()), min(len(a), len(b))
    return Estimate(
        value=point, low=min(low, point), high=max(high, point), level=level, n=n, method="two-group bootstrap"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
