import math

import numpy as np
import pytest
import torch

from basinguard.core.metric import Metric
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.similarity.embedder import Embedder, unit
from basinguard.similarity.structure import Structure
from basinguard.similarity.thresholds import best_outside, calibrated, from_neighbours, from_samples, null_threshold


def vectors(n: int, *, seed: int) -> torch.Tensor:
    return unit(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)))


def test_the_threshold_is_exceeded_by_the_share_asked_for():
    null = null_threshold(np.arange(1, 1000) / 1000, name="x", gallery=32, false_positives=0.01)
    assert null.threshold.value == pytest.approx(0.99)
    assert null.threshold.n == 999
    assert null.false_positives == 0.01


def test_the_interval_covers_the_quantile_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = [
        e.low <= 0.95 <= e.high
        for e in (
            null_threshold(rng.uniform(size=400), name="u", gallery=1, false_positives=0.05).threshold
            for _ in range(400)
        )
    ]
    assert 0.93 <= np.mean(covered) <= 0.99


def test_too_few_images_are_said_to_be_too_few():
    null = null_threshold([0.1, 0.5, 0.3], name="x", gallery=5)
    assert null.false_positives == 1 / 4
    assert null.threshold.value == 0.5
    assert "0.25 of 3 images" in null.metric("eye").source
    assert null.metric("eye").threshold == null.threshold.high


@pytest.mark.parametrize("bad", [[], [0.5], [0.5, math.nan], [[0.1, 0.2]]])
def test_refuses_what_is_no_null(bad):
    with pytest.raises(ValueError, match="at least 2 finite"):
        null_threshold(bad, name="x", gallery=1)


def test_refuses_a_share_that_is_none():
    with pytest.raises(ValueError, match="false_positives=0"):
        null_threshold([0.1, 0.2], name="x", gallery=1, false_positives=0)


def test_samples_take_the_better_of_both_sides():
    train, samples, mirrored = vectors(9, seed=0), vectors(20, seed=1), vectors(20, seed=2)
    expected = torch.maximum((samples @ train.T).max(1).values, (mirrored @ train.T).max(1).values)
    null = from_samples(samples, train, mirrored=mirrored)
    assert null.threshold.value == pytest.approx(float(expected.max()))
    assert null.gallery == 9


def test_neighbours_leave_out_the_duplicate_group():
    base = vectors(6, seed=3)
    train = torch.cat([base, base[:2]])  # two duplicates
    groups = [0, 1, 2, 3, 4, 5, 0, 1]
    expected = (base @ base.T).fill_diagonal_(-2).max(1).values
    similarities = best_outside(train, train, groups, groups)
    assert similarities == pytest.approx([*expected.tolist(), *expected[:2].tolist()], abs=1e-6)
    assert from_neighbours(train, groups).threshold.value == pytest.approx(float(expected.max()), abs=1e-6)
    assert from_neighbours(train, range(8)).threshold.value == pytest.approx(1.0)


def test_one_group_leaves_nothing():
    with pytest.raises(ValueError, match="one duplicate group"):
        from_neighbours(vectors(4, seed=0), [1, 1, 1, 1])
    with pytest.raises(ValueError, match="3 groups given for 4"):
        from_neighbours(vectors(4, seed=0), [1, 2, 3])


def noise(n: int, *, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def bright(n: int, *, seed: int) -> torch.Tensor:
    """Pictures that are nearly one picture: the published threshold takes every one for a copy."""
    return (0.9 * noise(1, seed=99) + 0.1 * noise(n, seed=seed)).clamp(0, 1)


def test_a_guard_can_be_given_an_eye_with_a_threshold_of_its_own_images():
    eye = calibrated(Structure(), bright(30, seed=0), fresh=bright(40, seed=1), name="base samples")
    assert isinstance(eye, Embedder)
    assert eye.metric.threshold > 0.9 > Structure().metric.threshold
    assert "null base samples" in eye.metric.source
    assert "beside the published 0.69" in eye.metric.source
    guard = Guard(TrainingSet(bright(30, seed=0), tuple(map(str, range(30)))), eye, ProbePlan(captions=1))
    copies = guard.is_copy(torch.cat([bright(4, seed=2), bright(3, seed=0)]))
    assert copies.tolist() == [False] * 4 + [True] * 3


def test_a_small_null_does_not_undercut_the_published_threshold_and_a_large_one_may():
    few, many = (
        null_threshold(np.linspace(0.1, 0.3, n), name="x", gallery=9, false_positives=0.01) for n in (20, 2000)
    )
    published = Metric(embedder="eye", threshold=0.69, source="there")
    assert few.beside(published).threshold == 0.69
    assert "because 20 images are few" in few.beside(published).source
    assert many.beside(published).threshold < 0.31
    assert few.beside(published.model_copy(update={"threshold": 1.0})).threshold == pytest.approx(0.3)


def test_without_fresh_images_the_training_images_are_compared_with_each_other():
    train = noise(20, seed=0)
    assert "null train-train" in calibrated(Structure(), train).metric.source
    doubled = torch.cat([train, train[:1]])
    with pytest.raises(ValueError, match="near-duplicates leave nothing"):
        calibrated(Structure(), doubled)
    assert calibrated(Structure(), doubled, groups=[*range(20), 0]).metric.threshold < 0.98
