"""The monitor: its bets against numerical integrals, its errors over many streams, and a stream that turns bad."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest

from basinguard.attacks.exchangeability import ConformalRanks, log_mixture
from basinguard.attacks.monitor import Monitor
from basinguard.core.betting import anytime_upper, log_capital_above
from support.toy_guard import STRONG, make_guard

DETECTOR = SimpleNamespace(embedder=SimpleNamespace(metric=SimpleNamespace(threshold=0.5)))


def test_the_mixture_of_power_bets_is_its_integral():
    p_values = [0.2, 0.9, 0.04]
    expected = quad(lambda e: np.prod([e * p ** (e - 1) for p in p_values]), 0, 1)[0]
    assert float(log_mixture(np.log(p_values).sum(), 3)) == pytest.approx(math.log(expected), rel=1e-9)
    assert float(log_mixture(0.0, 0)) == 0
    assert float(log_mixture(-1.0, 5000)) == -700, "what is lost stays a number"


def test_the_next_bet_on_a_uniform_rank_is_fair():
    before = math.exp(log_mixture(-1.7, 4))
    after = quad(lambda y: math.exp(log_mixture(-1.7 - y, 5) - y), 0, math.inf)[0]  # p = exp(-y)
    assert after == pytest.approx(before, rel=1e-6)


def test_ranks_of_exchangeable_scores_are_uniform_even_with_ties():
    ranks, rng = ConformalRanks(0), np.random.default_rng(1)
    p_values = [ranks.p_value(score) for score in rng.integers(0, 4, 600).tolist()]
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert 0 < min(p_values) <= max(p_values) <= 1


def test_a_reading_is_the_betting_bound_of_its_counts():
    monitor = Monitor(DETECTOR, alpha=0.1, delta=0.05)
    assert (monitor.reading().upper, monitor.reading().risk) == (1.0, None)
    reading = monitor.see_similarities([0.1] * 60 + [0.9] * 2)
    assert (reading.samples, reading.copies, reading.shift) == (62, 2, None)
    assert reading.upper == pytest.approx(float(anytime_upper(2, 62, 0.05)))
    assert reading.evidence == pytest.approx(float(log_capital_above(2, 62, 0.1)))
    assert (reading.breached, reading.proven) == (False, False)
    assert monitor.see_similarities([0.1] * 100).proven
    assert "kept" in str(monitor.reading())


def test_a_breach_stays_a_breach():
    monitor = Monitor(DETECTOR, alpha=0.05)
    assert monitor.see_similarities([0.9] * 5).breached
    later = monitor.see_similarities([0.1] * 2000)
    assert (later.breached, later.proven) == (True, False)
    assert "BREACHED" in str(later)


def test_samples_that_come_nearer_are_told_and_others_are_not():
    rng = np.random.default_rng(2)
    before = rng.normal(0.3, 0.05, 200)
    same, nearer = (Monitor(DETECTOR, 0.5, calibration=before) for _ in range(2))
    assert not same.see_similarities(rng.normal(0.3, 0.05, 200).tolist()).shifted
    reading = nearer.see_similarities(rng.normal(0.36, 0.05, 200).tolist())
    assert reading.shifted
    assert not reading.breached, "nothing is a copy yet"


def test_images_go_through_the_copy_detector():
    guard = make_guard()
    images = STRONG.points[[0, 1, 40]].reshape(-1, 3, 2, 2)
    assert (monitor := Monitor(guard.copy_detector, 0.5)).see(images).copies == 2
    assert monitor.samples == 3
    with pytest.raises(ValueError, match="alpha=0"):
        Monitor(guard.copy_detector, 0)
