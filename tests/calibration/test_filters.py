"""Filters of the update as products: searched where they are asked for, plain, proven on the ladder of plain CFG."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from basinguard.calibration.candidate import Product, ProductCandidate, by_kind
from basinguard.calibration.certification import Certification
from basinguard.calibration.choice import best
from basinguard.calibration.cost import most_products
from basinguard.calibration.danger import dangers
from basinguard.calibration.knobs import FILTER, knob
from basinguard.calibration.ladders import contenders
from basinguard.calibration.record_builder import certify
from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.search import Search
from basinguard.calibration.terms import CalibrationTerms, Setting
from basinguard.calibration.weights import FixedWeights, OpenWeights, recorded
from basinguard.core.provenance import Provenance
from basinguard.core.record import Record
from basinguard.core.stats import rate
from basinguard.diffusion.toy import gaussian_memorizer, stable_diffusion_schedule
from basinguard.exports.sentences import product_line, verdict
from basinguard.guard.plan import ProbePlan
from basinguard.guidance.strength import StrengthSchedule
from support.toy_guard import WEAK, Points, make_guard

NOISE = stable_diffusion_schedule()
GRID = torch.tensor([999, 874, 749, 624, 499, 374, 249, 124])
PLAIN, PREFIX = plain_cfg(3.0, NOISE), rule(Setting(0.0), 499.0, NOISE, 3.0)
NAMES = ("no-cross-attention", "rank-16")
PROVENANCE = Provenance("toy", "0" * 64, "1" * 64, "epsilon", 2)


def candidate(product, copies=0, **changes):
    hits = [True] * copies + [False] * (16 - copies)
    rest = {"phase": "search", "evals_per_sample": 16.0, "nearest": 0.5, **changes}
    return ProductCandidate.measured(hits, list(range(16)), 0.1, product=product, **rest)


def test_a_filtered_product_is_plain_and_says_its_filter():
    product = Product(PLAIN, 0.8, 3, update_filter="rank-16")
    assert str(product) == "epoch 4, strength 0.8, rank-16, plain CFG, scale 3"
    assert product.plain
    assert not product.whole
    assert not replace(product, strength=1.0).whole
    assert knob(product, 3.0) == knob(replace(product, guidance=PREFIX), 3.0) == FILTER
    with pytest.raises(ValueError, match="'rank-16' with a strength_schedule"):
        replace(product, strength_schedule=recorded(StrengthSchedule((300.0,), (0.6, 1.0))))


def test_an_unknown_one_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="'no-text' is not known; known: no-cross-attention, residual-blocks, no-att"):
        CalibrationTerms(update_filters=("no-text",))


class Level:
    """A bench on which all products keep alike; of plain CFG the first epoch keeps nothing, and the last copies."""

    alpha = 0.1
    guard = SimpleNamespace(plan=ProbePlan(scale=3.0))

    def __init__(self):
        self.asked = []

    def measure(self, weights, products):
        for product in products:
            self.asked.append(product)
            yield candidate(product, copies=16 if product.epoch != 20 and not product.update_filter else 0)


def searched(**terms):
    bench, weights = Level(), SimpleNamespace(epochs=(10, 20, 30), graded=True)
    terms = CalibrationTerms(strengths=(1.0,), scales=(3.0,), **terms)
    Search(bench, weights, terms, GRID, NOISE).run()
    assert len(bench.asked) == len(set(bench.asked))
    assert len(bench.asked) <= most_products(terms, scale=3.0, epochs=3, graded=True)[0]
    return bench.asked


def test_none_is_searched_unless_asked_for():
    assert not any(p.update_filter for p in searched(before=(0.0,)))


@pytest.mark.parametrize("before", [(), (0.0,)])
def test_filters_are_tried_with_plain_cfg_at_its_best_epoch_and_at_later_ones(before):
    filtered = [p for p in searched(before=before, update_filters=NAMES) if p.update_filter]
    assert filtered == [Product(PLAIN, 1.0, epoch, update_filter=name) for epoch in (20, 30) for name in NAMES]


def test_they_share_no_delta_with_rules():
    assert CalibrationTerms(delta=0.05, before=(), update_filters=NAMES).share == 0.05


def test_they_stand_with_plain_cfg_and_are_no_share():
    share, filtered = candidate(Product(PLAIN, 0.5), 1), candidate(Product(PLAIN, update_filter="rank-16"))
    assert by_kind([share, filtered]) == ([share, filtered], [])
    assert dangers([share, filtered])[filtered.product] == (0, 0.5), "not pooled with a share that copies"


def test_they_are_not_the_whole_fine_tune_which_is_ranked_and_compared_with_whatever_else_there_is():
    good, poor = (rate([1.0, value] * 8, list(range(16))) for value in (1.0, 0.0))
    shares = [candidate(Product(PLAIN, strength), alignment=good) for strength in (0.5, 0.6, 0.7)]
    filtered, whole = Product(PLAIN, update_filter="rank-16"), Product(PLAIN)
    tried = [*shares, candidate(filtered, 1, alignment=poor), candidate(whole, 16, alignment=poor)]
    assert contenders(tried, CalibrationTerms()) == [share.product for share in shares]
    work = SimpleNamespace(taught=lambda product: None, whole=lambda: whole)
    best_filtered = [candidate(filtered, alignment=good), candidate(whole, 16, alignment=poor)]
    assert Certification.most_taught_plain(work, best_filtered) == whole


def test_of_level_products_the_whole_fine_tune_ships_before_what_a_filter_leaves():
    whole = replace(candidate(Product(PLAIN), alignment=candidate(Product(PLAIN)).risk), proven=True)
    assert best([replace(whole, product=Product(PLAIN, update_filter="rank-16")), whole]) == whole


class Filterable:
    """A memorizer, which a filter cures."""

    epochs, graded = (3, 7), True

    def __init__(self):
        self.asked = []

    @contextmanager
    def at(self, epoch, strength):
        leak = 0.9 if strength == 0 else 1e-3
        yield OpenWeights(Points(gaussian_memorizer(count=64, dim=12, leak=leak)))

    @contextmanager
    def filtered(self, epoch, strength, update_filter):
        self.asked.append((epoch, strength, update_filter))
        yield OpenWeights(Points(WEAK))


TERMS = CalibrationTerms(
    alpha=0.4, delta=0.1, pairs=80, strengths=(1.0,), before=(), search_pairs=8, update_filters=NAMES[:1]
)


def test_the_one_that_keeps_the_promise_ships_as_plain_weights_and_the_record_says_so():
    weights = Filterable()
    certificate = certify(make_guard(scale=1.5), weights, TERMS, PROVENANCE)
    record = certificate.record
    assert certificate.shipped.proven
    assert certificate.safe is certificate.shipped, "a plain loader gets it"
    assert record.promise
    assert set(weights.asked) == {(epoch, 1.0, NAMES[0]) for epoch in (3, 7)}
    assert (record.product.update_filter, record.product.strength) == (NAMES[0], 1.0)
    assert record.risk.value < 0.4 < record.plain.value, "without the filter the same weights copy"
    assert (record.unruled, record.strength) == (None, None)
    assert record.needs_nothing
    assert not certificate.most_taught_plain.update_filter, "what it is compared with is the whole fine-tune"
    assert Record.from_json(record.to_json()) == record
    assert ", the fine-tune without its change of cross-attention, plain CFG of scale 1.5" in product_line(record)
    assert verdict(record).startswith("No rule needed: these weights keep the promise with plain CFG, in any tool.")


def test_a_share_of_what_is_left_is_told_in_words():
    record = certify(make_guard(scale=1.5), Filterable(), TERMS, PROVENANCE).record
    product = record.product.model_copy(update={"strength": 0.8, "update_filter": "rank-16"})
    line = product_line(record.model_copy(update={"product": product}))
    assert "0.8 of the fine-tune with the 16 largest singular values of each layer's change alone, plain" in line


def test_a_model_as_it_is_has_none():
    with pytest.raises(ValueError, match="update_filters need the base model"):
        certify(make_guard(), FixedWeights(Points()), TERMS, PROVENANCE)
