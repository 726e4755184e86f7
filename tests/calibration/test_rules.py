"""Which rules a search tries, and at which epochs."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from basinguard.calibration.candidate import ProductCandidate
from basinguard.calibration.rules import between, earliest, rule, rules_of
from basinguard.calibration.search import Search
from basinguard.calibration.terms import CalibrationTerms, Setting
from basinguard.diffusion.toy import stable_diffusion_schedule
from basinguard.guard.plan import ProbePlan

NOISE = stable_diffusion_schedule()
GRID = torch.tensor([999, 937, 874, 812, 749, 687, 624, 562, 499, 437, 374, 312, 249, 187, 124, 62])


def transitions(rules):
    return [r.transition for r in rules]


def test_four_transitions_stand_for_a_grid_and_none_is_the_first():
    rules = rules_of(CalibrationTerms(before=(0.0, -1.0)), GRID, NOISE, 3.0)
    assert transitions(rules) == 2 * [874, 624, 374, 124]
    assert [r.before for r in earliest(rules)] == [0.0, -1.0]
    assert transitions(earliest(rules)) == [874, 874]


def test_between_lies_halfway_to_the_neighbours_of_the_same_setting():
    rules = rules_of(CalibrationTerms(before=(0.0, -1.0)), GRID, NOISE, 3.0)
    assert transitions(between(rules[1], rules, GRID, NOISE)) == [749, 499]
    assert transitions(between(rules[0], rules, GRID, NOISE)) == [937, 749]
    assert transitions(between(rules[3], rules, GRID, NOISE)) == [249, 62]
    next_to_each_other = [rule(Setting(0.0), t, NOISE, 3.0) for t in (937.0, 874.0, 812.0)]
    assert between(next_to_each_other[1], next_to_each_other, GRID, NOISE) == []
    (nearer,) = between(
        next_to_each_other[2], [*next_to_each_other, rule(Setting(0.0), 687.0, NOISE, 3.0)], GRID, NOISE
    )
    assert nearer.sigma == pytest.approx(float(NOISE.sigma(749.0)))
    assert (nearer.transition, nearer.before, nearer.after) == (749.0, 0.0, 3.0)


class Drawn:
    """A bench whose results are given: gains and copies of (epoch, rule or plain, transition)."""

    alpha = 0.1
    guard = SimpleNamespace(plan=ProbePlan(scale=3.0))

    def __init__(self, gain, copies):
        self.gain, self.copies, self.asked = gain, copies, []

    def measure(self, weights, products):
        for product in products:
            self.asked.append(product)
            copies = self.copies(product)
            hits = [True] * copies + [False] * (16 - copies)
            yield Rated.measured(
                hits, list(range(16)), 0.1, product=product, phase="search", evals_per_sample=32.0, nearest=0.5
            ).worth(self.gain(product))


class Rated(ProductCandidate):
    def worth(self, gain):
        object.__setattr__(self, "own", gain)
        return self

    @property
    def gain(self):
        return self.own


class Epochs:
    epochs, graded = (10, 20, 30, 40), True

    @contextmanager
    def at(self, epoch, strength):
        yield None


def searched(gain, copies, **terms):
    bench = Drawn(gain, copies)
    Search(bench, Epochs(), CalibrationTerms(strengths=(1.0,), scales=(3.0,), **terms), GRID, NOISE).run()
    return bench.asked


def test_rules_are_tried_at_the_best_epoch_for_plain_cfg_and_at_every_later_one():
    """Plain CFG is best, and safe, at epoch 20; a rule makes epoch 30 safe and keeps more there, and most at 812."""

    def gain(p):
        if p.guidance.plain:
            return {10: 0.3, 20: 0.5}.get(p.epoch, 0.1)
        return {20: 0.4, 30: 0.7, 40: 0.2}[p.epoch] - abs(p.guidance.transition - 812) / 1000

    def copies(p):
        return 16 if p.guidance.plain and p.epoch > 20 else 0

    asked = searched(gain, copies, before=(0.0, -1.0))
    ruled = [p for p in asked if not p.guidance.plain]
    early = {(p.epoch, p.guidance.before) for p in ruled if p.guidance.transition == 874}
    assert early == {(e, b) for e in (20, 30, 40) for b in (0.0, -1.0)}
    assert {p.epoch for p in ruled if p.guidance.transition != 874} == {30}
    halved = transitions(p.guidance for p in ruled if p.epoch == 30 and p.guidance.before == 0.0)
    assert halved == [874, 624, 374, 124, 937, 749, 812]
    assert len(asked) == len(set(asked)), "nothing is tried twice"


def test_a_search_without_rules_tries_none_and_named_transitions_are_not_refined():
    level = (lambda p: 0.5, lambda p: 0)
    assert all(p.guidance.plain for p in searched(*level, before=()))
    named = searched(*level, before=(0.0,), transitions=(750.0, 500.0))
    assert {p.guidance.transition for p in named if not p.guidance.plain} == {749.0, 499.0}
