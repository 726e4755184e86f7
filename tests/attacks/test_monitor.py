"""The monitor: its bets against numerical integrals, its errors over many streams, and a stream that turns bad."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binom, kstest

from basinguard.attacks.exchangeability import ConformalRanks, log_mixture
from basinguard.attacks.monitor import Monitor, incomparable
from basinguard.calibration.design import Design
from basinguard.core.betting import anytime_upper, log_capital_above
from basinguard.core.metric import Metric
from basinguard.core.record import MOST_SIMILARITIES, stored_similarities
from basinguard.exports.fingerprints import dataset_sha256
from support.export_fixtures import pipe, record
from support.toy_guard import STRONG, make_guard

__all__ = ["pipe", "record"]
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


@pytest.fixture
def proven(record):
    """A record of a toy's proof, and the copy detector of its training images."""
    detector = make_guard().copy_detector
    similarities = stored_similarities(np.random.default_rng(4).normal(0.3, 0.05, 200).tolist())
    changes = {"metric": detector.embedder.metric, "similarities": similarities, "alpha": 0.2}
    return record.model_copy(
        update=changes | {"dataset_sha256": dataset_sha256(detector.images, detector.captions)}
    ), detector


def test_a_stream_is_compared_with_the_samples_of_the_records_own_proof(proven):
    rng, (record, detector) = np.random.default_rng(5), proven
    same, nearer = (Monitor.of_record(record, detector) for _ in range(2))
    assert (same.alpha, same.delta) == (0.2, record.delta)
    assert not same.see_similarities(rng.normal(0.3, 0.05, 150).tolist()).shifted
    assert nearer.see_similarities(rng.normal(0.38, 0.05, 150).tolist()).shifted


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"similarities": ()}, "made by an earlier version"),
        ({"metric": Metric(embedder="sscd", threshold=0.9, source="x")}, "are of sscd, these of nearness"),
        ({"dataset_sha256": "0" * 64}, "other training images, or other captions"),
    ],
)
def test_what_cannot_be_compared_is_not_and_says_why(proven, change, why):
    record, detector = proven
    changed = record.model_copy(update=change)
    assert incomparable(record, detector) == ""
    assert why in incomparable(changed, detector)
    assert Monitor.of_record(changed, detector).see_similarities([0.1]).shift is None


def test_stored_similarities_are_rounded_without_order_and_few():
    rng = np.random.default_rng(6)
    stored = stored_similarities(rng.random(2000).tolist())
    assert len(stored) == MOST_SIMILARITIES
    assert list(stored) == sorted(round(value, 4) for value in stored)
    assert kstest(stored, "uniform").pvalue > 0.01, "drawn without regard to their values"


def test_samples_in_use_are_ranked_as_roundly_as_those_of_the_record():
    """Unrounded, every sample of the same one number would lie on one side of it."""
    monitor = Monitor(DETECTOR, 0.5, calibration=[0.12345] * 200)
    assert not monitor.see_similarities([0.123456789] * 200).shifted


def test_a_proof_that_ended_where_it_suited_raises_no_false_alarm_beyond_delta():
    """The calibration's samples are those of a sequential proof: where it stops depends on the copies among them."""
    rng, design, prompt = np.random.default_rng(7), Design.of("sequential", 6, 48), torch.arange(6).repeat(12)
    alarms = 0
    for _ in range(40):
        means = torch.tensor(rng.normal(0.3, 0.05, 6))
        drawn = means[prompt] + torch.tensor(rng.normal(0, 0.05, len(prompt)))
        rows = design.run(lambda part, drawn=drawn: drawn[part] >= 0.4, prompt, 0.2, 0.05)
        monitor = Monitor(DETECTOR, 0.2, calibration=stored_similarities(drawn[rows].tolist()))
        stream = means[torch.tensor(rng.integers(6, size=50))] + torch.tensor(rng.normal(0, 0.05, 50))
        alarms += monitor.see_similarities(stream.tolist()).shifted
    assert alarms <= binom.ppf(0.999, 40, 0.05)


def test_images_go_through_the_copy_detector():
    guard = make_guard()
    images = STRONG.points[[0, 1, 40]].reshape(-1, 3, 2, 2)
    assert (monitor := Monitor(guard.copy_detector, 0.5)).see(images).copies == 2
    assert monitor.samples == 3
    with pytest.raises(ValueError, match="alpha=0"):
        Monitor(guard.copy_detector, 0)
