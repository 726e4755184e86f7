"""From a guard and a model to a record, on the closed-form memorizer dressed as an image model."""

import pytest
import torch

from basinguard.basin.trajectories import pairs_of
from basinguard.calibration.grids import grid_positions
from basinguard.calibration.record_builder import certify
from basinguard.calibration.terms import CalibrationTerms
from basinguard.core import seeds
from basinguard.core.provenance import Provenance, versions
from basinguard.core.record import Record
from basinguard.guard.training_set import TrainingSet
from basinguard.similarity.kernel_distance import KernelDistance
from support.toy_guard import STRONG, Nearness, Points, make_guard

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


def test_the_record_ships_a_proven_transition_and_says_what_it_promises():
    guard = make_guard()
    guard.measure(Points(), epoch=0, train_step=1)
    record, tried = certify(
        guard, Points(), CalibrationTerms(alpha=0.4, delta=0.1, pairs=200, before=(0.0,)), PROVENANCE
    )
    chosen = next(c for c in tried if c.guidance.transition == record.guidance.transition)
    assert chosen.proven
    assert record.promise.startswith("the risk is at most 40%")
    assert record.risk.value < 0.4 < record.plain.value
    assert record.history == tuple(guard.history)
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
def test_the_record_names_the_sampler_and_the_quality_it_was_measured_with(solver):
    guard = make_guard(solver=solver)
    quality = KernelDistance.to_images(
        Nearness(), STRONG.points[20:40].reshape(-1, 3, 2, 2), name="nearness", what="other points"
    )
    terms = CalibrationTerms(alpha=0.4, delta=0.1, pairs=40, before=(0.0,), transitions=(100.0,))
    record, _ = certify(guard, Points(), terms, PROVENANCE, quality=quality)
    assert record.sampler.scheduler == f"{solver}, trailing"
    assert record.quality.method.startswith("kernel distance to 20 other points (lower is better), nearness")
    assert record.plain_quality.value > record.quality.value, "copies of four points are far from twenty others"


def test_what_the_sampler_cannot_do_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match=r"refine=3 with sampler 'dpm\+\+2m'"):
        certify(make_guard(solver="dpm++2m"), Points(), CalibrationTerms(refine=(1, 3), pairs=80), PROVENANCE)


def test_too_few_pairs_promise_nothing_and_say_how_many_it_takes():
    record, _ = certify(
        make_guard(), Points(), CalibrationTerms(alpha=0.05, delta=0.05, pairs=20, before=(0.0,)), PROVENANCE
    )
    assert record.promise == ""
    assert "39 more pairs would" in record.population


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
