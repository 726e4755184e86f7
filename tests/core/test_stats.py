"""Intervals and tests against closed forms, scipy, and simulated truth."""

import numpy as np
import pytest
from scipy import stats as reference

from basinguard.core import stats


def test_wilson_equals_its_formula():
    n, hits, z = 40, 3, reference.norm.ppf(0.975)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = stats.wilson(hits, n)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))


def test_rate_without_clusters_is_wilson():
    hits = np.arange(40) < 3
    plain, clustered = stats.wilson(3, 40), stats.rate(hits, np.arange(40))
    assert (clustered.low, clustered.high) == pytest.approx((plain.low, plain.high))


def test_rate_widens_when_seeds_of_a_prompt_agree():
    hits = np.repeat(np.arange(10) < 3, 4)
    apart, together = stats.rate(hits, np.arange(40)), stats.rate(hits, np.repeat(np.arange(10), 4))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert stats.design_effect(hits.astype(float), np.repeat(np.arange(10), 4)) == pytest.approx(4)


def test_rate_of_nothing_still_has_a_width():
    estimate = stats.rate(np.zeros(128), np.repeat(np.arange(32), 4))
    assert estimate.value == 0
    assert 0.02 < estimate.high < 0.04


@pytest.mark.parametrize(("hits", "n", "alpha"), [(0, 59, 0.05), (2, 124, 0.05), (7, 128, 0.1)])
def test_binomial_p_value_is_scipys_one_sided_test(hits, n, alpha):
    expected = reference.binomtest(hits, n, alpha, alternative="less").pvalue
    assert stats.binomial_p_value(hits, n, alpha) == pytest.approx(expected)


def test_binomial_p_value_says_nothing_outside_its_theorem():
    assert stats.binomial_p_value(10, 100, 0.1) == 1.0


def test_binomial_p_value_holds_when_every_caption_has_its_own_risk():
    rng = np.random.default_rng(0)
    risks = np.linspace(0, 0.2, 32)
    assert risks.mean() == pytest.approx(0.1)
    hits = (rng.random((4000, 32, 4)) < risks[:, None]).sum((1, 2))
    false_proofs = np.mean([stats.binomial_p_value(int(h), 128, 0.1) <= 0.05 for h in hits])
    assert false_proofs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_pairs_needed_is_the_first_n_that_proves_it():
    n = stats.pairs_needed(0.05, 0.05, hits=2)
    assert stats.binomial_p_value(2, n, 0.05) <= 0.05 < stats.binomial_p_value(2, n - 1, 0.05)


def test_cluster_bootstrap_covers_the_mean_at_its_level():
    rng = np.random.default_rng(1)
    covered = 0
    for draw in range(100):
        centres = rng.normal(size=30)
        values = (centres[:, None] + 0.3 * rng.normal(size=(30, 4))).ravel()
        estimate = stats.cluster_bootstrap(values, np.repeat(np.arange(30), 4), seed=draw)
        covered += estimate.low <= 0 <= estimate.high
    assert (
        covered >= 87
    )  # 95 expected; three standard errors below, less the small-sample bias of the percentile method


def test_simultaneous_band_covers_the_whole_curve():
    rng = np.random.default_rng(2)
    grid = np.linspace(0.05, 0.95, 19)
    covered = 0
    for _ in range(200):
        uniform = rng.random(40)
        band = stats.simultaneous_rates(uniform[:, None] <= grid, np.arange(40))
        covered += all(e.low <= t <= e.high for e, t in zip(band, grid, strict=True))
    assert covered >= 181  # 95% of 200 is 190; three standard errors below


def test_auc_counts_pairs():
    assert stats.auc([3, 2], [1, 2]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.wilson(0, 0), "got 0"),
        (lambda: stats.cluster_bootstrap([], []), "at least 1 value, got 0"),
        (lambda: stats.cluster_bootstrap([1.0, float("nan")], [0, 1]), "1 of 2 values are not finite"),
        (lambda: stats.binomial_p_value(1, 10, 1.5), "alpha must lie in"),
        (lambda: stats.pairs_needed(0.0, 0.05), "must lie in"),
        (lambda: stats.rate([1], [1, 2]), "do not fit"),
    ],
)
def test_too_little_or_wrong_input_is_an_error_with_the_count(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_fast_bootstrap_of_a_mean_is_the_slow_one():
    rng = np.random.default_rng(5)
    clusters = rng.integers(7, size=60)
    values = rng.normal(size=60) + clusters
    fast, slow = (stats.cluster_bootstrap(values, clusters, f) for f in (np.mean, lambda v: v.mean(-1)))
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


@pytest.mark.parametrize("reduce", [stats.p95, stats.median])
def test_draws_taken_many_at_once_are_those_taken_one_by_one(monkeypatch, reduce):
    values, clusters = np.random.default_rng(5).normal(size=60), np.repeat(np.arange(12), 5)
    at_once = stats.cluster_bootstrap(values, clusters, reduce)
    monkeypatch.setattr(stats, "DRAWN_AT_ONCE", 1)
    assert stats.cluster_bootstrap(values, clusters, reduce) == at_once
    assert at_once.low < at_once.value < at_once.high


@pytest.mark.parametrize(
    ("alpha", "delta", "n"), [(0.05, 0.05, 59), (0.05, 0.05, 58), (0.1, 0.05, 96), (0.3, 0.01, 200)]
)
def test_largest_proven_is_the_last_that_passes(alpha, delta, n):
    most = stats.largest_proven(alpha, delta, n)
    assert most < 0 or stats.binomial_p_value(most, n, alpha) <= delta
    assert stats.binomial_p_value(most + 1, n, alpha) > delta
