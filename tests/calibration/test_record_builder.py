"""From a guard and a model to a record, on the closed-form memorizer dressed as an image model."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from basinguard.basin.trajectories import pairs_of
from basinguard.calibration import lessons
from basinguard.calibration.candidate import of_phase
from basinguard.calibration.grids import grid_positions
from basinguard.calibration.lessons import TaughtTruth
from basinguard.calibration.record_builder import Certification, certify
from basinguard.calibration.sample_archive import SampleArchive
from basinguard.calibration.terms import CalibrationTerms
from basinguard.calibration.weights import FixedWeights, OpenWeights
from basinguard.core import seeds
from basinguard.core.estimate import Estimate
from basinguard.core.provenance import Provenance, versions
from basinguard.core.record import Record
from basinguard.core.stats import wilson
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.exports.sentences import verdict
from basinguard.guard.taught_ledger import TaughtLedger
from basinguard.guard.training_set import TrainingSet
from basinguard.plots.tradeoff import products_text
from basinguard.similarity.prompt_draws import estimate_of
from basinguard.similarity.taught import Taught
from support.toy_guard import WEAK, Points, make_guard


class Brightness:
    """A ruler that knows nothing but how bright the samples are."""

    def __init__(self, truth, base, prompts, feature_sets):
        self.prompts = tuple(prompts)

    def measure(self, images, prompts, copies):
        assert set(prompts) <= set(self.prompts)
        drawn = float(images.mean()) + np.linspace(0, 1e-3, 100)
        return Taught(estimate_of(drawn, 16), {}, {}, 0.0, replicas=drawn, units=("a",), n=16)


PROVENANCE = Provenance("toy", "0" * 64, "1" * 64, "epsilon", 2)


def test_a_memorizer_is_measured_as_one():
    report = make_guard().measure(Points(), epoch=0, train_step=10)
    assert report.samples.risk.value == 1.0
    assert 0.2 < report.basin.width.value < 0.9
    assert 100 < report.basin.exit.value < 900
    assert report.basin.transition < report.basin.exit.value
    assert report.basin.risk_uncond.value < 1
    assert report.gaps.train.value > 0
    shares = [estimate.value for _, estimate in report.basin.curve]
    assert shares == sorted(shares)


def test_measuring_again_gives_the_same_report():
    first, second = (make_guard().measure(Points(), epoch=0, train_step=1) for _ in range(2))
    assert first.model_copy(update={"seconds": 0.0}) == second.model_copy(update={"seconds": 0.0})


def test_state_survives():
    guard = make_guard()
    guard.measure(Points(), epoch=0, train_step=1)
    other = make_guard()
    other.load_state_dict(guard.state_dict())
    assert other.history == guard.history
    with pytest.raises(ValueError, match="no 'memory', its keys are"):
        other.load_state_dict({"history": []})
    with pytest.raises(ValueError, match="no 'history'"):
        other.load_state_dict({})


TERMS = CalibrationTerms(alpha=0.4, delta=0.1, pairs=80, before=(0.0,), taught_samples=8, search_pairs=8)


class Shares:
    """A fine-tune between two memorizers: 0 barely pulls, 1 copies; in between the chance of the strong one grows."""

    epochs, graded = (3, 7), True

    def __init__(self):
        self.opened = []

    @contextmanager
    def at(self, epoch, strength):
        self.opened.append((epoch, strength))
        leak = 0.9 if strength == 0 else 10 ** (-3 * strength * (1 if epoch == 7 else 0.5))
        yield OpenWeights(Points(gaussian_memorizer(count=64, dim=12, leak=leak)))


def test_a_rule_ships_where_plain_cfg_copies_and_the_record_says_what_it_promises():
    guard = make_guard()
    guard.measure(Points(), epoch=0, train_step=1)
    certificate = certify(guard, FixedWeights(Points()), TERMS, PROVENANCE)
    record, shipped = certificate.record, certificate.shipped
    assert shipped.proven
    assert not record.guidance.plain
    assert record.guidance == shipped.product.guidance
    assert record.promise.startswith("the risk is at most 40%")
    assert record.risk.value < 0.4 < record.plain.value == record.unruled.value
    assert record.taught is None, "without a base model there is nothing to hold it against"
    assert certificate.safe is certificate.safe_record is None
    assert record.history == tuple(guard.history)
    assert len(record.similarities) == record.risk.n
    copies = [value >= guard.embedder.metric.threshold for value in record.similarities]
    assert np.mean(copies) == record.risk.value, "the very samples that the promise was measured on"
    assert Record.from_json(record.to_json()) == record


def test_a_fine_tune_that_copies_nothing_ships_plain_as_it_is():
    certificate = certify(make_guard(scale=1.5), FixedWeights(Points(WEAK)), TERMS, PROVENANCE)
    record = certificate.record
    assert record.guidance.plain
    assert (record.scale, record.product.strength, record.unruled) == (1.5, 1.0, None)
    assert certificate.safe is certificate.shipped
    assert verdict(record).startswith("No rule needed: plain CFG with the whole fine-tune")


def test_where_cost_counts_a_cheaper_rule_ships_beside_what_needs_none():
    terms = replace(TERMS, counts="cost")
    certificate = certify(make_guard(scale=1.5), FixedWeights(Points(WEAK)), terms, PROVENANCE)
    assert certificate.shipped.proven
    assert certificate.shipped.evals_per_sample < certificate.plain.evals_per_sample
    assert certificate.shipped.evals_per_sample == min(c.evals_per_sample for c in certificate.tried if c.proven)
    assert certificate.safe_record.needs_nothing


def test_epochs_and_shares_are_searched_and_the_base_is_a_row_of_its_own():
    weights = Shares()
    certificate = certify(make_guard(), weights, TERMS, PROVENANCE)
    searched = of_phase(certificate.tried, "search")
    assert {(c.product.epoch, c.product.strength) for c in searched} >= {(e, s) for e in (3, 7) for s in (0.5, 0.7, 1)}
    assert searched[0].product.strength == 0
    assert certificate.record.base_risk == searched[0].risk
    assert certificate.plain.product.epoch == 7, "plain CFG of the newest epoch is what training without a guard gives"
    assert certificate.record.product.epoch == certificate.shipped.product.epoch
    bound = Certification(make_guard(), Shares(), TERMS, None).cost()
    assert len(searched) <= bound.searched
    assert len(certificate.tried) - len(searched) <= bound.proven
    assert certificate.evaluations <= bound.evaluations
    changes = [a != b for a, b in pairwise(weights.opened)]
    assert sum(changes) < len(searched) + 12, "candidates with the same weights are measured together"


class Counting(Shares):
    """Shares that count what their networks evaluate, and may be stopped by whoever opens them too often."""

    def __init__(self, stop=10**9):
        super().__init__()
        self.stop, self.models = stop, []

    @contextmanager
    def at(self, epoch, strength):
        if len(self.opened) == self.stop:
            raise KeyboardInterrupt
        with super().at(epoch, strength) as opened:
            self.models.append(opened.model)
            yield opened

    @property
    def evaluations(self):
        return sum(model.evals for model in self.models)


def test_a_stopped_calibration_goes_on_without_a_pair_drawn_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(lessons, "TaughtRuler", Brightness)
    guard = make_guard()
    truth = TaughtTruth(guard.training.images, ("point 50", "point 51"), ())

    def calibrated(weights, words="a run"):
        archive = SampleArchive(tmp_path / "samples", words)
        return certify(guard, weights, replace(TERMS, before=()), PROVENANCE, truth=truth, archive=archive), archive

    whole, stopped, rest, again, other = Counting(), Counting(stop=9), Counting(), Counting(), Counting()
    expected = certify(guard, whole, replace(TERMS, before=()), PROVENANCE, truth=truth)
    with pytest.raises(KeyboardInterrupt):
        calibrated(stopped)
    certificate, archive = calibrated(rest)
    assert certificate.record == expected.record
    assert certificate.evaluations == expected.evaluations, "what was spent before counts"
    assert 0 < stopped.evaluations == whole.evaluations - rest.evaluations
    assert calibrated(again)[0].record == expected.record
    assert again.evaluations == 0
    calibrated(other, "other weights")
    assert other.evaluations == whole.evaluations
    (tmp_path / "samples" / "of the user").touch()
    archive.clear()
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["of the user"]


def test_a_folder_that_cannot_be_written_stops_no_calibration(tmp_path):
    (tmp_path / "file").touch()
    archive = SampleArchive(tmp_path / "file" / "samples", "a run")
    certificate = certify(make_guard(scale=1.5), FixedWeights(Points(WEAK)), TERMS, PROVENANCE, archive=archive)
    assert certificate.record.guidance.plain


def test_what_was_taught_decides_and_is_told_of_heldout_prompts(monkeypatch):
    monkeypatch.setattr(lessons, "TaughtRuler", Brightness)
    guard = make_guard()
    truth = TaughtTruth(guard.training.images, ("point 50", "point 51"), ())
    certificate = certify(guard, Shares(), replace(TERMS, alpha=0.95), PROVENANCE, truth=truth)
    tested = [c for c in of_phase(certificate.tried, "proof") if c.proven]
    assert tested
    assert certificate.shipped is max(tested, key=lambda c: c.left.value)
    record, heldout = certificate.record, certificate.heldout
    assert record.taught == heldout[certificate.shipped.product].value != certificate.shipped.left, "on other prompts"
    assert record.plain_taught == heldout[certificate.plain.product].value
    assert record.best_plain_taught == max(
        (heldout[p].value for p in heldout if p.guidance.plain), key=lambda e: e.value
    )
    assert all(c.taught for c in certificate.tried), "the samples of the risk tell it of everything"


def test_what_was_taught_costs_the_samples_of_the_base_and_of_what_is_told(monkeypatch):
    """8 base samples of captions and 8 of held-out prompts, then 8 of at most four products told and six finalists."""
    monkeypatch.setattr(lessons, "TaughtRuler", Brightness)
    guard = make_guard()
    truth = TaughtTruth(guard.training.images, ("point 50", "point 51"), ())
    most = [Certification(guard, Shares(), TERMS, given).cost().samples for given in (None, truth)]
    assert most[1] - most[0] == 8 + 8 + (4 + 6) * 8
    certificate = certify(guard, Shares(), TERMS, PROVENANCE, truth=truth)
    taken = sum(c.evals_per_sample * c.risk.n for c in certificate.tried)
    assert certificate.evaluations - taken <= 40 * (8 + 8 + 8 * len(certificate.heldout) + TERMS.pairs)


def test_what_the_base_drew_in_its_own_probe_is_not_drawn_again(monkeypatch):
    monkeypatch.setattr(lessons, "TaughtRuler", Brightness)
    guard, prompts = make_guard(), ("point 50", "point 51")
    truth = TaughtTruth(guard.training.images, prompts, ())
    drawn = certify(guard, Shares(), TERMS, PROVENANCE, truth=truth)
    bound = Certification(guard, Shares(), TERMS, truth).cost().samples
    guard.ledger = TaughtLedger(guard.training, ())
    guard.ledger.take_base(torch.zeros(3, 3, 2, 2), (*prompts, "point 52"))
    reused = certify(guard, Shares(), TERMS, PROVENANCE, truth=truth)
    assert Certification(guard, Shares(), TERMS, truth).cost().samples == bound - 8
    assert drawn.evaluations - reused.evaluations == 8 * drawn.plain.evals_per_sample
    assert reused.heldout.keys() == drawn.heldout.keys()
    guard.ledger.take_base(torch.zeros(1, 3, 2, 2), prompts[:1])
    assert certify(guard, Shares(), TERMS, PROVENANCE, truth=truth).evaluations == drawn.evaluations


def test_nothing_left_is_no_success():
    record = certify(make_guard(scale=1.5), FixedWeights(Points(WEAK)), TERMS, PROVENANCE).record
    left = Estimate(value=0.02, low=-0.1, high=0.1, level=0.95, n=16, method="made up")
    empty = record.model_copy(update={"taught": left})
    assert empty.nothing_left
    assert verdict(empty).startswith("Safe, and nothing of what was taught is left")
    assert "earlier or a later epoch" in verdict(empty)
    unknown = record.model_copy(update={"taught": left.model_copy(update={"high": 0.6})})
    assert unknown.nothing_left
    assert verdict(unknown).startswith("Safe, and it could not be shown that anything of what was taught is left (0.02")


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_the_record_names_the_sampler(solver):
    terms = replace(TERMS, pairs=40, transitions=(100.0,))
    record = certify(make_guard(solver=solver), FixedWeights(Points()), terms, PROVENANCE).record
    assert record.sampler.scheduler == f"{solver}, trailing"


def test_what_the_sampler_cannot_do_is_refused_before_anything_is_measured():
    model = Points()
    with pytest.raises(ValueError, match=r"refine=3 with sampler 'dpm\+\+2m'"):
        certify(make_guard(solver="dpm++2m"), FixedWeights(model), replace(TERMS, refine=(1, 3)), PROVENANCE)
    assert model.evals == 0


def test_too_few_pairs_promise_nothing_and_say_how_many_it_takes():
    terms = replace(TERMS, alpha=0.05, delta=0.05, pairs=20)
    record = certify(make_guard(), FixedWeights(Points(WEAK)), terms, PROVENANCE).record
    assert record.promise == ""
    assert "39 more pairs would" in record.population


def test_where_nothing_is_proven_plain_cfg_ships_if_it_copies_less(monkeypatch):
    def copies_more(self, ladders):
        plain = self.measure(self.whole())
        return [[replace(plain, product=replace(plain.product, strength=0.5), risk=wilson(70, 80))]]

    monkeypatch.setattr(Certification, "prove", copies_more)
    certificate = certify(make_guard(scale=1.5), FixedWeights(Points(WEAK)), TERMS, PROVENANCE)
    assert certificate.record.promise == ""
    assert certificate.record.product.strength == 1
    assert certificate.record.risk == certificate.plain.risk
    assert certificate.plain.risk.value < 70 / 80


def test_a_model_as_it_is_has_neither_epochs_nor_shares():
    with pytest.raises(ValueError, match="given as it is"), FixedWeights(Points()).at(None, 0.5):
        pass


def test_positions_on_the_grid():
    grid = torch.tensor([999, 749, 499, 249])
    assert grid_positions(grid, ()) == [1, 2, 3]
    assert grid_positions(grid, (999.0, 500.0, 499.0)) == [0, 2]
    with pytest.raises(ValueError, match="below the sampler's last timestep 249"):
        grid_positions(grid, (100.0,))


def test_pairs_go_round_the_seeds():
    pairs = pairs_of(2, [7, 8, 9], 2, (3,))
    assert pairs.prompt.tolist() == [0, 0, 1, 1]
    assert pairs.seed.tolist() == [7, 8, 9, 7]
    assert torch.equal(pairs.noise[0], pairs.noise[3])


def test_versions_are_those_installed():
    assert versions()["torch"] == torch.__version__.split("+")[0]
    assert seeds.PROBE < seeds.CALIBRATION


@pytest.mark.parametrize(
    ("heldout", "captions", "message"),
    [(("point 0",), 4, "held-out prompts must not"), ((), 3, "need one caption an image")],
)
def test_a_training_set_that_contradicts_itself_is_refused(heldout, captions, message):
    with pytest.raises(ValueError, match=message):
        TrainingSet(torch.zeros(4, 3, 2, 2), tuple(f"point {k}" for k in range(captions)), heldout)


def test_a_set_of_several_subjects_is_measured_one_by_one(monkeypatch):
    """A ruler for each subject, which knows that one's prompts alone."""
    monkeypatch.setattr(lessons, "TaughtRuler", Brightness)
    guard = make_guard([f"{'cat' if k < 5 else 'dog'} in point {k}" for k in range(10)], heldout=("point 60",))
    truth = TaughtTruth(guard.training.images, ("point 50", "point 51"), ())
    certificate = certify(guard, Shares(), replace(TERMS, alpha=0.95), PROVENANCE, truth=truth)
    subjects = certificate.shipped.subjects
    assert set(subjects) == {"cat", "dog"}
    assert subjects["cat"].value != subjects["dog"].value
    head, first = products_text(certificate).splitlines()[-3:-1]
    worst = min(subjects, key=lambda name: subjects[name].value.value)
    assert head.endswith(f"worst: '{worst}'")
    assert first.startswith(f"  {worst}: ")
    assert "cat" not in certificate.record.to_json()


def test_samples_of_one_caption_among_several_say_nothing():
    """The base model was sampled for two captions; a distance between prompts needs samples of both."""
    images, prompts = torch.zeros(3, 3, 2, 2), ("point 0", "point 1")
    asked = lessons.Lessons(prompts, Brightness(images, images, prompts, ()))
    assert asked.measure(images, ["point 0"] * 3, torch.zeros(3)) is None
    assert asked.measure(images, ["point 0", "point 1", "point 1"], torch.zeros(3)) is not None
    alone = lessons.Lessons(prompts[:1], Brightness(images, images, prompts[:1], ()))
    assert alone.measure(images, ["point 0"] * 3, torch.zeros(3)) is not None, "the only one is told by its seeds"
