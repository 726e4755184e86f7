"""Pairs in rounds: the promise holds whenever one looks, and a clear verdict takes few of them."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.stats import binom

from basinguard.calibration.candidate import Candidate
from basinguard.calibration.design import Design
from basinguard.calibration.fixed_sequence import climb
from basinguard.calibration.trial import calibration_pairs
from basinguard.core.stats import wilson

CAPTIONS, ALPHA, DELTA = 24, 0.1, 0.05
ROUNDS = Design.of("sequential", CAPTIONS, 144)


def looked_at(risks, trials, seed=0):
    """Copies so far after each round, [trials, rounds], where each caption has a risk of its own."""
    rng = np.random.default_rng(seed)
    return (rng.random((trials, ROUNDS.rounds, CAPTIONS)) < risks).sum(2).cumsum(1)


@lru_cache
def clear(hits, n):
    return ROUNDS.clear(hits, n, ALPHA, DELTA)


def first_clear(row):
    """Copies and pairs where the verdict was clear."""
    counts = [(int(hits), CAPTIONS * (k + 1)) for k, hits in enumerate(row)]
    return next(count for count in counts if clear(*count))


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["every caption alike", "a few captions copied always"])
def test_one_who_stops_when_it_suits_is_wrong_no_more_often(spread):
    """At a risk of alpha exactly: the best moment of every trial is taken for the verdict."""
    few = np.where(np.arange(CAPTIONS) < 2, 1.0, (CAPTIONS * ALPHA - 2) / (CAPTIONS - 2))
    risks = (1 - spread) * ALPHA + spread * few
    assert risks.mean() == pytest.approx(ALPHA)
    hits = looked_at(risks, 4000)
    p_value = lru_cache(lambda h, n: ROUNDS.p_value(h, n, ALPHA))
    least = np.array([min(p_value(int(h), CAPTIONS * (k + 1)) for k, h in enumerate(row)) for row in hits])
    wrong = (least <= DELTA).mean()
    assert wrong <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / len(hits))
    assert spread or wrong > 0.005, "a test that is never wrong proves nothing either"


def test_a_fixed_design_is_the_exact_binomial_test():
    assert Design(144).p_value(8, 144, ALPHA) == pytest.approx(binom.cdf(8, 144, ALPHA))
    assert Design(144).clear(0, 144, ALPHA, DELTA)


def test_rounds_meet_every_caption_equally_often_and_no_pair_twice():
    for captions in (3, 24, 40):
        design = Design.of("sequential", captions, 144)
        prompt = calibration_pairs(captions, design.pairs, (1,), 0).prompt
        parts = list(design.split(prompt))
        assert len(parts) == design.rounds > 1
        assert all(len(set(prompt[part].bincount().tolist())) == 1 for part in parts)
        assert torch.cat(parts).sort().values.tolist() == list(range(len(prompt)))


@pytest.mark.parametrize(
    ("risk", "most", "verdict"), [(0.0, 48, True), (1.0, 24, False), (0.3, 72, False)], ids=["none", "all", "many"]
)
def test_a_clear_verdict_takes_few_pairs(risk, most, verdict):
    prompt = calibration_pairs(CAPTIONS, ROUNDS.pairs, (1,), 0).prompt
    copied = torch.rand(len(prompt), generator=torch.Generator().manual_seed(1)) < risk
    rows = ROUNDS.run(lambda part: copied[part], prompt, ALPHA, DELTA)
    assert len(rows) <= most
    assert (Candidate.measured(copied[rows], prompt[rows], ALPHA, ROUNDS).p_value <= DELTA) is verdict


def test_an_interval_holds_however_the_rounds_came_to_end():
    """Risks of which the truth is known, stopped where the verdict was clear: outside at most as often as it says."""
    interval, missed = lru_cache(lambda hits, n: ROUNDS.interval(wilson(hits, n))), []
    for risk in (0.02, 0.1, 0.3):
        for row in looked_at(risk, 300, seed=round(100 * risk)):
            estimate = interval(*first_clear(row))
            missed.append(not estimate.low <= risk <= estimate.high)
    assert np.mean(missed) <= 0.05
    assert Design(144).interval(wilson(3, 144)) == wilson(3, 144)


def test_near_the_limit_it_has_the_power_of_a_fixed_design_at_no_more_pairs():
    """A risk of 0.04 where 0.1 is allowed: 144 pairs prove it in 88 % of trials."""
    ends = [first_clear(row) for row in looked_at(0.04, 1000)]
    proven = np.mean([ROUNDS.p_value(hits, n, ALPHA) <= DELTA for hits, n in ends])
    assert proven > binom.cdf(8, 144, 0.04) - 0.08
    assert np.mean([n for _, n in ends]) < 144


def climbed(risks, start, delta=DELTA):
    """What is tested of products of these measured risks, by name, and with which share of delta."""
    shares = []

    def measure(step, share):
        shares.append((step, round(share, 4)))
        return Candidate.measured(torch.arange(200) < 200 * risks[step], range(200), ALPHA)

    ladder = range(len(risks))
    return [candidate.proven for candidate in climb(ladder, start, measure, delta)], shares


def test_a_climb_goes_up_while_proven_and_down_where_it_began_too_high():
    up = climbed([0.0, 0.0, 0.0, 0.2, 0.3], start=1)
    assert up == ([True, True, False], [(1, 0.04), (2, 0.04), (3, 0.04)])
    down = climbed([0.0, 0.2, 0.2, 0.3], start=2)
    assert down == ([False, False, True], [(2, 0.04), (1, 0.008), (0, 0.002)])
    assert climbed([0.3, 0.4], start=0) == ([False], [(0, 0.05)])
    assert sum(share for _, share in down[1]) == pytest.approx(DELTA), "no more than delta is spent"
