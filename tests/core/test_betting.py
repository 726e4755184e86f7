"""Bets are fair at the hypothesis, win on the other side of it, and their bounds hold at every n at once."""

import numpy as np
import pytest
from scipy.integrate import quad

from basinguard.core.betting import (
    anytime_interval,
    anytime_lower,
    anytime_upper,
    log_capital_above,
    log_capital_below,
    payoff,
    stake_for,
)

RISKS = (0.02, 0.1, 0.5)
COUNTS = [(0, 0), (0, 7), (3, 7), (7, 7), (2, 40)]
SIDES = {log_capital_below: (0.0, 1.0), log_capital_above: (1.0, 0.0)}  # where the mixed risks end


@pytest.mark.parametrize("capital", SIDES)
@pytest.mark.parametrize("risk", RISKS)
def test_the_next_bet_is_fair_at_the_hypothesis(capital, risk):
    for hits, n in COUNTS:
        after = risk * np.exp(capital(hits + 1, n + 1, risk)) + (1 - risk) * np.exp(capital(hits, n + 1, risk))
        assert after == pytest.approx(float(np.exp(capital(hits, n, risk))), rel=1e-9)


@pytest.mark.parametrize("risk", RISKS)
def test_the_next_bet_loses_on_average_inside_the_hypothesis(risk):
    for capital, true in ((log_capital_below, risk + 0.2), (log_capital_above, risk / 2)):
        for hits, n in COUNTS:
            after = true * np.exp(capital(hits + 1, n + 1, risk)) + (1 - true) * np.exp(capital(hits, n + 1, risk))
            assert after < np.exp(capital(hits, n, risk))


@pytest.mark.parametrize("risk", RISKS)
def test_the_capital_is_the_mean_over_jeffreys_prior_of_the_product_of_payoffs(risk):
    outcomes = [1, 0, 0, 1, 0]
    ends = {log_capital_below: (0, risk), log_capital_above: (risk, 1)}
    for capital, (low, high) in ends.items():

        def density(angle):  # p = sin(angle)^2 makes Beta(1/2, 1/2) uniform, so that quadrature meets no pole
            target = np.sin(angle) ** 2
            return np.prod(payoff(outcomes, risk, stake_for(target, risk)))

        first, last = np.arcsin(np.sqrt([low, high]))
        expected = quad(density, first, last)[0] / (last - first)
        assert np.exp(capital(2, 5, risk)) == pytest.approx(expected, rel=1e-7)


def test_a_bound_is_where_the_evidence_reaches_one_in_delta():
    for hits, n in COUNTS[1:]:
        upper, lower = float(anytime_upper(hits, n, 0.05)), float(anytime_lower(hits, n, 0.05))
        assert 0 <= lower <= hits / n <= upper <= 1
        if hits < n:
            assert log_capital_below(hits, n, upper) == pytest.approx(np.log(20), abs=1e-6)
        if hits > 0:
            assert log_capital_above(hits, n, lower) == pytest.approx(np.log(20), abs=1e-6)
    assert anytime_upper(0, 0, 0.05) == 1


def test_the_bound_is_seldom_broken_at_any_n():
    rng = np.random.default_rng(0)
    hits = (rng.random((500, 1000)) < 0.05).cumsum(1)
    evidence = log_capital_below(hits, np.arange(1, 1001), 0.05)  # a bound is below 0.05 exactly where 0.05 is refuted
    assert 0 < (evidence >= np.log(10)).any(1).mean() <= 0.1
    ends = anytime_upper(hits[:50, -1], 1000, 0.1) < 0.05
    assert ends.tolist() == (evidence[:50, -1] >= np.log(10)).tolist()


def test_an_interval_for_people_says_what_it_is():
    rate = anytime_interval(3, 40)
    assert (rate.value, rate.n, rate.method) == (0.075, 40, "betting, anytime-valid")
    assert rate.high == pytest.approx(float(anytime_upper(3, 40, 0.025)))
    with pytest.raises(ValueError, match="5 hits among 4 outcomes: expected 0 <= hits <= n"):
        anytime_interval(5, 4)
