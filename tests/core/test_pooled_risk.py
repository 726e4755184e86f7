"""Risk of few samples a probe, pooled: closed forms at the ends of the model, and coverage by the code itself."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from basinguard.core import pooled_risk as module
from basinguard.core.pooled_risk import pooled_risk


def jeffreys(hits, n):
    return beta(hits + 0.5, n - hits + 0.5).ppf([0.5, 0.025, 0.975])


def assert_is(estimate, value, low, high):
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value, low, high), abs=2e-3)


@pytest.fixture
def fresh_kernels():
    module._kernels.cache_clear()
    yield
    module._kernels.cache_clear()


@pytest.mark.parametrize(("hits", "n"), [(3, 24), (1, 2), (20, 48)])
def test_of_one_probe_it_is_jeffreys_interval(hits, n):
    assert_is(pooled_risk([(hits, n)]), *jeffreys(hits, n))
    assert pooled_risk([(hits, n)]).n == n


def test_where_nothing_moves_all_probes_are_one(monkeypatch, fresh_kernels):
    monkeypatch.setattr(module, "STEPS", (1e-4,))
    monkeypatch.setattr(module, "JUMP", 0.0)
    pooled = pooled_risk([(1, 24), (1, 2), (0, 3), (2, 4)])
    assert_is(pooled, *jeffreys(4, 33))
    assert pooled.n == 9, "the base model's samples are no evidence of these weights"


def test_where_anything_may_follow_only_the_last_counts(monkeypatch):
    monkeypatch.setattr(module, "JUMP", 1.0)
    assert_is(pooled_risk([(0, 24), (5, 5), (1, 4)]), *jeffreys(1, 4))


def test_without_a_copy_the_interval_holds_a_risk_of_none_and_with_copies_alone_of_all():
    """The ends of Brown, Cai and DasGupta; the other end stays where it was."""
    assert (pooled_risk([(0, 24), (0, 2)]).low, pooled_risk([(24, 24), (2, 2)]).high) == (0.0, 1.0)
    assert pooled_risk([(0, 24)]).high == pytest.approx(jeffreys(0, 24)[2], abs=2e-3)


def test_earlier_probes_narrow_it_and_a_jump_is_believed():
    assert pooled_risk([(0, 24), (0, 3), (0, 3), (0, 3)]).high < 0.5 * pooled_risk([(0, 3)]).high
    assert pooled_risk([(0, 24), (0, 4), (0, 4), (4, 4)]).value > 0.5


def test_it_covers_what_it_says_where_risk_moves_as_the_model_has_it():
    """Five probes of three samples after a base of 24: the interval misses in 5 % of 200 runs, within 3 sigma."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        angle, step, counts = random.uniform(0, np.pi / 2), random.choice(module.STEPS), []
        for probe in range(6):
            if probe:
                angle = abs(angle + step * random.standard_normal())
                angle = min(angle, np.pi - angle) if random.random() > module.JUMP else random.uniform(0, np.pi / 2)
            n = 3 if probe else 24
            counts.append((random.binomial(n, np.sin(angle) ** 2), n))
        interval = pooled_risk(counts)
        missed += not interval.low <= np.sin(angle) ** 2 <= interval.high
    assert binom.cdf(missed, 200, 0.05) > 0.0013
    assert binom.sf(missed - 1, 200, 0.05) > 0.0013


@pytest.mark.parametrize("counts", [[], [(2, 1)], [(0, 4), (-1, 3)]])
def test_what_is_no_count_is_refused(counts):
    with pytest.raises(ValueError, match="expected \\(copies, samples\\)"):
        pooled_risk(counts)
