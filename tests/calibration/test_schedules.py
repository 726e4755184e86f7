"""Strengths by timestep as products: searched where they are asked for, proven beside rules, told in words."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from basinguard.calibration.candidate import Product, ProductCandidate, by_kind
from basinguard.calibration.cost import most_products
from basinguard.calibration.danger import dangers
from basinguard.calibration.knobs import SCHEDULE, knob
from basinguard.calibration.record_builder import certify
from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.search import Search
from basinguard.calibration.terms import CalibrationTerms, Setting
from basinguard.calibration.weights import FixedWeights, OpenWeights, recorded
from basinguard.core.provenance import Provenance
from basinguard.core.record import Record
from basinguard.diffusion.toy import gaussian_memorizer, stable_diffusion_schedule
from basinguard.exports.sentences import product_line, verdict
from basinguard.guard.plan import ProbePlan
from basinguard.guidance.strength import StrengthSchedule
from support.toy_guard import WEAK, Points, make_guard

NOISE = stable_diffusion_schedule()
GRID = torch.tensor([999, 874, 749, 624, 499, 374, 249, 124])
LATE, EARLY = StrengthSchedule((300.0,), (0.6, 1.0)), StrengthSchedule((700.0,), (1.0, 0.5))
PLAIN, PREFIX = plain_cfg(3.0, NOISE), rule(Setting(0.0), 499.0, NOISE, 3.0)
PROVENANCE = Provenance("toy", "0" * 64, "1" * 64, "epsilon", 2)


def candidate(product, copies=0):
    hits = [True] * copies + [False] * (16 - copies)
    rest = {"phase": "search", "evals_per_sample": 16.0, "nearest": 0.5}
    return ProductCandidate.measured(hits, list(range(16)), 0.1, product=product, **rest)


class Level:
    """A bench on which all products keep alike; plain CFG with the whole fine-tune of the last epoch copies."""

    alpha = 0.1
    guard = SimpleNamespace(plan=ProbePlan(scale=3.0))

    def __init__(self):
        self.asked = []

    def measure(self, weights, products):
        for product in products:
            self.asked.append(product)
            yield candidate(product, copies=16 if product.plain and product.epoch == 30 else 0)


def searched(**terms):
    bench, weights = Level(), SimpleNamespace(epochs=(10, 20, 30), graded=True)
    terms = CalibrationTerms(strengths=(1.0,), scales=(3.0,), **terms)
    Search(bench, weights, terms, GRID, NOISE).run()
    most = most_products(terms, scale=3.0, epochs=3, graded=True)[0]
    assert len(bench.asked) == len(set(bench.asked)) <= most
    return bench.asked


def test_a_product_says_its_strengths():
    product = Product(PLAIN, 1.0, 3, recorded(LATE))
    assert str(product) == "epoch 4, strength 0.6 at high noise, 1 from 300 down, plain CFG, scale 3"
    assert not product.plain
    assert knob(product, 3.0) == knob(replace(product, guidance=PREFIX), 3.0) == SCHEDULE


def test_none_is_searched_unless_asked_for():
    assert not any(p.strength_schedule for p in searched(before=(0.0,)))


def test_schedules_are_tried_with_plain_cfg_at_the_best_epoch_and_later_ones_and_with_the_best_rule():
    """Level products: the first epoch leads, so that every epoch is tried; the earliest rule leads."""
    asked = searched(before=(0.0,), transitions=(499.0,), strength_schedules=(LATE, EARLY))
    scheduled = [p for p in asked if p.strength_schedule]
    plain = {(p.epoch, p.strength_schedule) for p in scheduled if p.guidance.plain}
    assert plain == {(epoch, recorded(s)) for epoch in (10, 20, 30) for s in (LATE, EARLY)}
    (epoch,) = {p.epoch for p in scheduled if not p.guidance.plain}
    assert [p for p in scheduled if not p.guidance.plain] == [
        Product(PREFIX, 1.0, epoch, recorded(schedule)) for schedule in (LATE, EARLY)
    ]
    without = searched(before=(), strength_schedules=(LATE,))
    assert [p.guidance.plain for p in without if p.strength_schedule] == [True] * 3


def test_they_share_delta_with_what_a_loader_must_apply():
    assert CalibrationTerms(delta=0.05, before=()).share == 0.05
    assert CalibrationTerms(delta=0.05, before=(), strength_schedules=(LATE,)).share == 0.025
    assert CalibrationTerms(delta=0.05, before=(0.0,), strength_schedules=(LATE,)).share == 0.025


def test_they_stand_with_rules_and_are_no_share_of_plain_cfg():
    share, scheduled = candidate(Product(PLAIN, 0.5), 1), candidate(Product(PLAIN, 1.0, None, recorded(LATE)))
    assert by_kind([share, scheduled]) == ([share], [scheduled])
    assert dangers([share, scheduled])[scheduled.product] == (0, 0.5), "not pooled with a share that copies"


class Schedulable:
    """A memorizer, which a strength by timestep cures."""

    epochs, graded = (3, 7), True

    def __init__(self):
        self.asked = []

    @contextmanager
    def at(self, epoch, strength):
        leak = 0.9 if strength == 0 else 1e-3
        yield OpenWeights(Points(gaussian_memorizer(count=64, dim=12, leak=leak)))

    @contextmanager
    def scheduled(self, epoch, schedule):
        self.asked.append((epoch, schedule))
        yield OpenWeights(Points(WEAK))


TERMS = CalibrationTerms(
    alpha=0.4, delta=0.1, pairs=80, strengths=(1.0,), before=(), search_pairs=8, strength_schedules=(LATE,)
)


def test_the_one_that_keeps_the_promise_ships_and_the_record_says_so():
    weights = Schedulable()
    certificate = certify(make_guard(scale=1.5), weights, TERMS, PROVENANCE)
    record = certificate.record
    assert certificate.shipped.proven
    assert record.promise
    assert {schedule for _, schedule in weights.asked} == {LATE}
    assert (record.product.kind, record.product.strength) == ("lora", 1.0)
    assert record.product.strength_schedule == recorded(LATE)
    assert record.risk.value < 0.4 < record.unruled.value, "without the schedule the same weights copy"
    assert certificate.safe is None, "plain loaders cannot follow it"
    assert not record.needs_nothing
    assert Record.from_json(record.to_json()) == record
    assert "as a LoRA whose strength follows the timestep (0.6 at high noise, 1 from 300 down)" in product_line(record)
    assert verdict(record).startswith("Safe by its strengths by timestep.")


def test_a_model_as_it_is_has_none():
    with pytest.raises(ValueError, match="need a LoRA and the base model below it"):
        certify(make_guard(), FixedWeights(Points()), TERMS, PROVENANCE)
