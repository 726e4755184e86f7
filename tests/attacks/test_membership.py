"""Membership statistics against closed form, and what it takes to believe a true-positive rate."""

import math
import re

import numpy as np
import pytest
import torch

from basinguard.attacks.compressed_size import compressed_size
from basinguard.attacks.conditional_gap import blended, conditional_gap, reduced_captions, robustly_scaled
from basinguard.attacks.denoising_loss import LossPlan, denoising_loss
from basinguard.attacks.membership import BLEND, GAP, LOSS, MembershipTest, membership_row, variants
from basinguard.attacks.operating_point import controls_needed, operating_point
from basinguard.basin.trajectories import GuidedModel
from basinguard.diffusion.sampling import draw_noise
from basinguard.diffusion.toy import gaussian_memorizer, two_points
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from support.toy_guard import STRONG, Nearness, Points, make_guard


def test_the_loss_of_a_memorizer_is_the_weight_it_leaves_to_the_other_point():
    toy = two_points(distance=3.0, leak=0.2)
    plan = LossPlan(timesteps=(300, 700), draws=3)
    model = GuidedModel(toy, toy.schedule, toy.schedule.grid(10), 1.0)
    measured = float(denoising_loss(model, toy.points[:1], torch.tensor([0]), plan))
    expected = []
    for timestep in plan.timesteps:
        a, s = (float(f(torch.tensor([timestep]))) for f in (toy.schedule.signal, toy.schedule.noise))
        for eps in draw_noise(range(7_900_000, 7_900_003), (4,)).double():
            y = toy.points[0] + s / a * eps
            odds = math.log(0.8 / 0.2) + float(
                (y - toy.points[1]).square().sum() - (y - toy.points[0]).square().sum()
            ) / (2 * (s / a) ** 2)
            missed = 1 / (1 + math.exp(odds)) * a / s * 3.0  # the predicted noise is off by this length
            expected.append(missed**2 / 4)
    assert measured == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_conditional_gap_is_what_reduced_captions_lose():
    assert conditional_gap([[3.0, 1.0], [2.0, 2.0]], [1.0, 2.0]).tolist() == [1.0, 0.0]
    assert reduced_captions("one two three four") == ("one", "two", "three four", "")


def test_robust_scaling_has_median_0_and_an_interquartile_range_of_1():
    scaled = robustly_scaled([4.0, 0.0, 1.0, 2.0, 3.0])
    assert scaled.tolist() == [1.0, -1.0, -0.5, 0.0, 0.5]
    assert robustly_scaled([2.0, 2.0]).tolist() == [0.0, 0.0]
    assert blended([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], weight=0.75).tolist() == [-1.0, 0.0, 1.0]


def test_noise_takes_more_bytes_than_an_even_picture():
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    even, rich = compressed_size(torch.stack([torch.full_like(noise, 0.3), noise]))
    assert even < 120 < 3000 < rich < 3 * 32 * 32 + 200


def test_a_statistic_divided_by_the_size_is_blended_anew():
    scores = {LOSS: np.array([-1.0, -2.0, -3.0]), GAP: np.array([4.0, 2.0, 0.0])}
    columns = variants(scores, np.array([1.0, 2.0, 4.0]))
    assert columns["conditional gap / compressed size"].tolist() == [4.0, 1.0, 0.0]
    divided = columns[f"{BLEND} / compressed size"]
    assert divided.tolist() == blended([4.0, 1.0, 0.0], [1.0, 1.0, 0.75]).tolist()


def test_the_operating_point_allows_one_false_positive_in_a_hundred():
    controls = np.arange(200.0)  # two of 200 may lie above
    point = operating_point([150.0, 197.0, 197.5, 300.0], controls)
    assert (point.threshold, point.false.value, point.hits.value) == (197.0, 0.01, 0.5)
    assert point.hits.low == pytest.approx(0.0676, abs=1e-4), "Clopper-Pearson, 2 of 4"
    assert point.hits.high == pytest.approx(0.9324, abs=1e-4)


def test_ties_with_the_threshold_are_not_called_members():
    point = operating_point([1.0, 1.0], np.ones(100))
    assert (point.hits.value, point.false.value) == (0.0, 0.0)


def test_too_few_controls_have_no_headline_and_are_told_how_many_it_takes():
    assert [controls_needed(share) for share in (0.01, 0.03, 0.1)] == [100, 34, 10]
    row = membership_row("loss", np.array([2.0, 3.0]), np.arange(99.0))
    assert (row.hits, row.auc.value) == (None, pytest.approx(3 / 99))
    assert re.search("99 held-out images.* at least 1 and 100", row.missing)
    assert membership_row("loss", np.array([2.0, 3.0]), np.arange(100.0)).missing == ""


class Texts(Points):
    """Points whose captions may be cut: one without a number says nothing."""

    def denoiser(self, prompts):
        return super().denoiser([text if text[-1].isdigit() else "point -1" for text in prompts])


def guard_with_fresh_controls(count):
    """Eight of the memorizer's points, and held-out ones that it does not know under captions of others of its own."""
    fresh = gaussian_memorizer(count=count, dim=12, seed=9).points.reshape(-1, 3, 2, 2)
    images = STRONG.points[:8].reshape(-1, 3, 2, 2)
    own, other = (tuple(f"point {k}" for k in numbers) for numbers in (range(8), (8 + k % 56 for k in range(count))))
    return Guard(TrainingSet(images, own, other, fresh), Nearness(), ProbePlan(captions=4, timesteps=20))


def test_a_memorizer_gives_all_its_members_away():
    base = Texts(gaussian_memorizer(count=64, dim=12, seed=5))
    test = MembershipTest(guard_with_fresh_controls(128), base)
    table = test.table("plain", Texts())
    judged = {row.statistic: row for row in table.rows}
    assert (len(table.rows), table.members, table.controls, table.missing) == (6 * 3, 8, 128, "")
    least = 2 * (8 + 128) * 5 * 6  # five captions at six noises, for the model and for its base
    assert least < table.evaluations <= test.most_evaluations(models=1)
    for name in (LOSS, GAP, BLEND, "critical scale"):
        assert (judged[name].hits.value, judged[name].auc.value) == (1.0, 1.0)
    assert (judged[LOSS].hits.n, judged[LOSS].false.n) == (8, 128)
    assert judged["gap"].auc.value < 0.8, "captions of other points of the memorizer pull as much"


def test_no_held_out_images_is_one_line():
    with pytest.raises(ValueError, match="there are none; give a folder of at least 100 with --heldout"):
        MembershipTest(make_guard(heldout=()))
