"""Stand-ins for a control group, the guard that draws their images, and the dashboard of a run."""

import pytest
import torch

from basinguard.core.report import Report
from basinguard.guard.control_prompts import NEUTRAL, recombined_prompts, unknowable
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.status import run_status
from basinguard.guard.training_set import TrainingSet
from basinguard.plots.run import dashboard
from support.reports import base, near, report
from support.toy_guard import STRONG, Nearness, Points


def test_twins_share_words_with_the_set_and_are_none_of_its_captions():
    captions = ["a red ball on grass", "a blue box in snow", "a green kite"]
    prompts = recombined_prompts(captions)
    assert prompts == recombined_prompts(captions), "the same prompts whenever a run is resumed"
    assert len(prompts) == len(set(prompts)) > 3
    assert not set(prompts) & set(captions)
    assert "a red in snow" not in captions


@pytest.mark.parametrize("captions", [["a photo of sks dog"] * 5, ["dog"], [NEUTRAL[0], NEUTRAL[1]]])
def test_a_set_that_says_always_the_same_gets_neutral_prompts(captions):
    prompts = recombined_prompts(captions, most=4)
    assert len(prompts) == 4
    assert not set(prompts) & set(captions)


def test_many_captions_cost_no_more_than_a_few():
    assert len(recombined_prompts([f"a thing {k} of kind {k % 7}" for k in range(5000)])) == 8


def test_what_cannot_be_known_is_said_and_nothing_is_said_of_a_large_set():
    assert unknowable(200, stand_in=False, drawn=False, samples=64, alpha=0.1) == ()
    notice = " ".join(unknowable(5, stand_in=True, drawn=True, samples=10, alpha=0.1))
    for words in (
        "recombined",
        "the base model's own samples",
        "35 would settle it",
        "5 images are the whole evidence",
    ):
        assert words in notice


def tiny_guard():
    texts = tuple(f"point {k}" for k in range(5))
    training = TrainingSet(STRONG.points[:5].reshape(-1, 3, 2, 2), texts, ("point 60", "point 61"), stand_in=True)
    return Guard(training, Nearness(), ProbePlan(5, 1, timesteps=10, critical_scales=2))


def test_the_base_model_draws_the_twins_once_and_a_resumed_guard_has_the_same():
    guard = tiny_guard()
    guard.measure(Points(), epoch=-1, train_step=0)
    twins = guard.training.heldout_images
    assert twins.shape == (2, 3, 2, 2)
    report = guard.measure(Points(), epoch=0, train_step=8)
    assert report.critical_scales.excess is not None
    assert guard.training.heldout_images is twins
    again = tiny_guard()
    again.load_state_dict(guard.state_dict())
    assert torch.equal(again.training.heldout_images, twins)
    assert torch.equal(again.gallery, guard.gallery)


def drawn(history):
    figure = dashboard(history, run_status(history, 0.15))
    figure.canvas.draw()
    return figure


@pytest.mark.usefixtures("drawn_figures")
def test_the_dashboard_says_the_verdict_and_draws_through_gaps():
    rows = [base(), report(0, gap_excess=near(0.01, 0.005)), Report.missed(1, 16, "no memory"), report(2, 12)]
    figure = drawn(rows)
    assert figure.get_suptitle().startswith("memorizing, confidence")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "risk"
    assert any("by image" in title for title in titles)
    assert figure.axes[5].get_images()[0].get_array().shape == (2, 4)
    assert any(text.get_text() == "not measured" for text in figure.axes[4].texts)


def test_the_dashboard_of_nothing_is_a_picture_too():
    assert drawn([Report.missed(-1, 0, "no memory")]).get_suptitle() == "unknown"
