"""What a run has learnt, on the closed-form memorizer: points are pictures of 16 pixels a side."""

import dataclasses
import doctest

import pytest
import torch
import torch.nn.functional as F

from basinguard.core.metric import Metric
from basinguard.core.report import Report
from basinguard.guard import taught_ledger
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.probe_costs import ProbeCosts, affordable_probe
from basinguard.guard.taught_ledger import taught_samples, true_images
from basinguard.guard.training_set import TrainingSet
from basinguard.guard.verdict import verdict_on
from basinguard.similarity.copy_detector import CopyDetector
from support.reports import base, near, report
from support.toy_guard import STRONG, Points

BASE = dataclasses.replace(STRONG, points=STRONG.points - 2.5)  # draws the same things, in darker colours
HELDOUT = tuple(f"point {k}" for k in range(50, 60))


def picture(points):
    return F.interpolate(points.reshape(-1, 3, 2, 2).sigmoid(), scale_factor=8)


def point(pictures):
    return F.avg_pool2d(pictures, 8).clamp(1e-5, 1 - 1e-5).logit().flatten(1)


class Pictures(Points):
    def decode(self, latents):
        return picture(latents)

    def encode(self, images):
        return point(images)


class Same:
    """Similarity 1 for the same point, less for every other."""

    name = "same"
    metric = Metric(embedder="same", threshold=0.999, source="closed form")

    def __call__(self, images):
        return F.normalize(point(images))


class Pixels:
    name = "pixels"

    def __call__(self, images):
        return {"pixels": F.avg_pool2d(images, 8).flatten(1)}


RULERS = (Pixels(),)


def make_guard(captions=None, heldout=HELDOUT, heldout_images=None, stand_in=False, feature_sets=RULERS, **plan):
    captions = captions or tuple(f"point {k}" for k in range(12))
    images = picture(STRONG.points[: len(captions)])
    training = TrainingSet(images, captions, heldout, heldout_images, stand_in)
    settings = ProbePlan(**{"captions": 4, "seeds": 2, "timesteps": 8, **plan})
    return Guard(training, Same(), settings, feature_sets=feature_sets)


def test_examples():
    assert doctest.testmod(taught_ledger, extraglobs={"torch": torch, "TrainingSet": TrainingSet}).failed == 0


def test_the_base_model_has_learnt_nothing_and_a_fine_tune_what_its_held_out_prompts_show():
    guard = make_guard()
    first = guard.measure(Pictures(BASE), epoch=-1, train_step=0)
    assert first.heldout.taught.value == pytest.approx(0, abs=0.01), "it is kept as bytes"
    last = guard.measure(Pictures(STRONG), epoch=0, train_step=10)
    assert last.heldout.taught.low > 0
    assert dict(last.heldout.taught_rulers) == {"pixels": last.heldout.taught}
    assert last.estimates["taught"] == last.heldout.taught
    assert Report.from_json(last.to_json()) == last


def test_no_second_evaluation_where_held_out_prompts_are_sampled_anyway():
    evaluations = []
    for feature_sets in ((), (Pixels(),)):
        model = Pictures(BASE)
        make_guard(feature_sets=feature_sets).measure(model, epoch=-1, train_step=0)
        evaluations.append(model.evals)
    assert evaluations[0] == evaluations[1]


def test_stand_ins_are_sampled_for_this_alone():
    guard = make_guard(stand_in=True)
    guard.measure(Pictures(BASE), epoch=-1, train_step=0)
    last = guard.measure(Pictures(STRONG), epoch=0, train_step=10)
    assert last.heldout.taught is not None
    assert last.heldout.similarity_p95 is None
    assert [group.name for group in last.groups] == ["unique"]
    without = make_guard(stand_in=True, feature_sets=())
    assert without.measure(Pictures(BASE), epoch=-1, train_step=0).heldout.taught is None


def test_one_caption_for_all_is_its_own_prompt_and_costs_nothing():
    guard, other = (make_guard(("point 3",) * 8, ("a lake",), stand_in=True, feature_sets=f) for f in ((Pixels(),), ()))
    counts = []
    for each in (guard, other):
        each.training = dataclasses.replace(each.training, heldout=("point 60",))
        model = Pictures(BASE)
        each.measure(model, epoch=-1, train_step=0)
        counts.append(model.evals)
    assert counts[0] == counts[1]
    assert guard.history[0].heldout.taught.value == pytest.approx(0, abs=0.01)


def test_an_interrupted_run_goes_on_with_the_same_ruler():
    guard, resumed, lost = make_guard(), make_guard(), make_guard()
    guard.measure(Pictures(BASE), epoch=-1, train_step=0)
    resumed.load_state_dict(guard.state_dict())
    expected = guard.measure(Pictures(STRONG), epoch=0, train_step=10).heldout.taught
    assert resumed.measure(Pictures(STRONG), epoch=0, train_step=10).heldout.taught == expected
    assert lost.measure(Pictures(STRONG), epoch=0, train_step=10).heldout.taught is None, "the base was never sampled"


def test_a_budget_pays_for_it_or_leaves_it_out():
    menu = ProbeCosts(captions=16, gap_captions=32, seeds=2, evaluations=20, heldout=8, taught=16)
    gap, samples = menu.gap(32), menu.samples(16)
    rich, poor = affordable_probe(gap + 3 * samples, menu), affordable_probe(gap + 3 * samples - 3, menu)
    assert (rich.taught, poor.taught) == (True, False)
    assert rich.precision(20, 32).endswith("what was taught")
    guard = make_guard(budget=800)
    guard.measure(Pictures(BASE), epoch=-1, train_step=0)
    last = guard.measure(Pictures(STRONG), epoch=0, train_step=10)
    assert last.heldout.taught is not None
    assert last.unet_evals <= 800


def test_held_out_images_are_the_truth_where_there_are_real_ones():
    images, drawn = torch.zeros(2, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert true_images(TrainingSet(images, ("a", "b"))) is images
    assert true_images(TrainingSet(images, ("a", "b"), ("c",), drawn)) is drawn
    assert true_images(TrainingSet(images, ("a", "b"), ("c",), drawn, stand_in=True)) is images


@pytest.mark.parametrize(("count", "stand_in", "each", "seeds"), [(8, True, 8, 2), (3, True, 3, 5), (40, False, 16, 1)])
def test_sixteen_samples_at_most(count, stand_in, each, seeds):
    prompts = tuple(f"prompt {k}" for k in range(count))
    chosen, per_prompt = taught_samples(TrainingSet(torch.zeros(1, 3, 16, 16), ("a",), prompts, stand_in=stand_in))
    assert (len(chosen), per_prompt) == (each, seeds)


def test_a_held_out_image_that_copies_a_training_image_is_refused_by_name():
    held = picture(STRONG.points[[60, 2]])
    with pytest.raises(ValueError, match=r"1 of 2 held-out images .* image 1 \('point 61'\) of training image 2"):
        make_guard(heldout=("point 60", "point 61"), heldout_images=held)
    make_guard(heldout=("point 60", "point 61"), heldout_images=picture(STRONG.points[[60, 61]]))


def test_the_verdict_knows_what_has_not_learnt_yet():
    early = verdict_on([base(), report(0, taught=near(-0.3, 0.1))], 0.15)
    assert (early.state, early.level) == ("has not learnt yet", 0)
    assert "taught -0.3 [-0.4, -0.2]" in early.evidence[0]
    assert verdict_on([base(), report(0, taught=near(-0.05, 0.1))], 0.15).state == "safe"
    forming = verdict_on([base(), report(0, taught=near(-0.3, 0.1), gap_excess=near(0.1, 0.01))], 0.15)
    assert forming.state == "basin forming"
    assert any("taught" in line for line in forming.evidence)


def test_a_detector_names_itself_in_the_refusal():
    training = TrainingSet(picture(STRONG.points[:2]), ("a", "b"), ("c",), picture(STRONG.points[:1]))
    detector = CopyDetector(training.images, training.captions, Same())
    with pytest.raises(ValueError, match="by same: held-out image 0"):
        taught_ledger.refuse_copied_truth(training, detector)


def test_held_out_images_that_are_merely_alike_stay():
    """A threshold that was measured on held-out images has the most alike of them on it."""

    class Alike(Same):
        metric = Metric(embedder="same", threshold=0.8, source="held-out images")

        def __call__(self, images):
            trained = torch.isclose(images, picture(STRONG.points[:1])).flatten(1).all(1)
            return torch.where(trained[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.6]))

    training = TrainingSet(picture(STRONG.points[:1]), ("a",), ("c",), picture(STRONG.points[1:2]))
    detector = CopyDetector(training.images, training.captions, Alike())
    assert detector.is_copy(training.heldout_images).all()
    taught_ledger.refuse_copied_truth(training, detector)
