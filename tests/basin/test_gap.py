"""Critical scale, gap alarm and the dynamic detectors, on memorizers whose truth is known."""

import math

import pytest
import torch

from basinguard.basin.critical_scale import critical_scale
from basinguard.basin.detectors import detector_error
from basinguard.basin.exit_search import ExitSearch
from basinguard.basin.gap import pair_gaps, top_gap
from basinguard.basin.heldout_contrast import contrast_with_heldout
from basinguard.basin.trajectories import GuidedModel, Pairs
from basinguard.core import stats
from basinguard.diffusion.sampling import EMPTY, draw_noise
from basinguard.diffusion.toy import gaussian_memorizer, two_points
from basinguard.guidance.dynamic import Drop, LocalMinimum, SwitchAfter

TOY = gaussian_memorizer(count=32, dim=16, leak=1e-3)


def probe_of(toy, steps=25, scale=7.5, **changes):
    return GuidedModel(toy, toy.schedule, toy.schedule.grid(steps), scale, **changes)


def borne(toy, point, prompt, timestep, steps=16, radius=0.25):
    """Whether a point stays within the radius when the denoiser is applied again and again at one noise level."""
    now, sigma = torch.tensor([timestep]), float(toy.schedule.sigma(timestep))
    a, y = float(toy.schedule.signal(now)), point.clone()
    for _ in range(steps):
        y = y - sigma * toy(a * y, now, torch.tensor([prompt]))
        if float((y - point).norm()) > radius * float(point.norm()):
            return False
    return True


@pytest.mark.parametrize("prompt", [0, EMPTY])
def test_critical_scale_is_the_last_level_that_is_borne(prompt):
    toy = gaussian_memorizer(count=32, dim=16, leak=0.5)
    critical = critical_scale(probe_of(toy), toy.points[:1], torch.tensor([0]))
    measured = critical.with_caption if prompt == 0 else critical.without
    timestep = round(toy.schedule.timestep(float(measured[0])))
    assert [borne(toy, toy.points[:1], prompt, timestep + k) for k in (-50, -1, 0, 1, 50)] == [True] * 3 + [False] * 2


def test_a_caption_holds_its_image_at_more_noise_than_none_does():
    model = probe_of(TOY)
    critical = critical_scale(model, TOY.points[:6], torch.arange(6))
    assert bool((critical.caption_effect > 0).all())
    assert model.count.total <= 2 * 6 * 10 * 16
    weaker = gaussian_memorizer(count=32, dim=16, leak=0.3)
    less = critical_scale(probe_of(weaker), weaker.points[:6], torch.arange(6))
    assert bool((less.with_caption < critical.with_caption).all()), "the caption says less, so it holds less"


def test_an_image_of_another_caption_is_held_by_neither_more():
    own = critical_scale(probe_of(TOY), TOY.points[:6], torch.arange(6))
    swapped = critical_scale(probe_of(TOY), TOY.points[:6], torch.arange(6).roll(1))
    assert bool((swapped.with_caption < own.with_caption).all())
    torch.testing.assert_close(swapped.without, own.without)


def test_chunks_change_no_critical_scale():
    whole = critical_scale(probe_of(TOY), TOY.points[:5], torch.arange(5))
    small = critical_scale(probe_of(TOY, chunk=3), TOY.points[:5], torch.arange(5))
    assert torch.equal(whole.with_caption, small.with_caption)


@pytest.mark.parametrize("wrong", [{"radius": 0.0}, {"radius": 1.0}, {"steps": 0}])
def test_what_is_no_critical_scale_is_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 1 image"):
        critical_scale(probe_of(TOY), TOY.points[:1], torch.tensor([0]), **wrong)
    broken = probe_of(TOY, 5)
    broken = GuidedModel(lambda x, t, p: x * float("nan"), TOY.schedule, broken.timesteps, 1.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        critical_scale(broken, TOY.points[:1], torch.tensor([0]))


def test_every_caption_costs_one_evaluation_and_shares_its_noise():
    model = probe_of(TOY, chunk=4)
    gaps = pair_gaps(model, torch.arange(20).repeat_interleave(2), torch.tensor([5, 6]).repeat(20), (16,))
    assert gaps.shape == (40,)
    assert 20 * 2 < model.count.total <= 20 * 2 + 2 * 10, "one unconditional evaluation for each seed and batch"
    pairs = Pairs(torch.tensor([7]), torch.tensor([6]), draw_noise([6], (16,)))
    torch.testing.assert_close(gaps[15], top_gap(probe_of(TOY), pairs)[0])


def test_the_alarm_is_a_paired_difference_and_ranks_captions():
    g = torch.Generator().manual_seed(0)
    base, twins = torch.rand(30, generator=g), torch.rand(12, generator=g)
    rise = 0.05 + 0.02 * torch.rand(30, generator=g)
    rise[17] += 1
    alarm = contrast_with_heldout(base + rise, base, twins + 0.01, twins)
    assert alarm.raised
    assert alarm.ranking[0] == 17
    assert alarm.auc.value == 1
    assert alarm.auc.low < 1
    assert alarm.since_base.value == pytest.approx(float(rise.mean()), rel=1e-4)
    calm = contrast_with_heldout(base + 0.01, base, twins + 0.01, twins)
    assert not calm.raised


def test_an_alarm_between_equal_groups_is_rarely_raised():
    g = torch.Generator().manual_seed(1)
    raised = sum(
        contrast_with_heldout(
            torch.randn(30, generator=g), torch.zeros(30), torch.randn(16, generator=g), torch.zeros(16)
        ).raised
        for _ in range(60)
    )
    assert raised <= 0.025 * 60 + 3 * math.sqrt(0.025 * 0.975 * 60) + 1  # the bootstrap is a little narrow at 16


def test_an_alarm_needs_held_out_captions():
    with pytest.raises(ValueError, match="held-out"):
        contrast_with_heldout(torch.ones(3), torch.ones(3), torch.ones(0), torch.ones(0))


def test_delong_covers_the_auc():
    g, covered = torch.Generator().manual_seed(2), 0
    true = float(torch.distributions.Normal(0, 1).cdf(torch.tensor(1 / math.sqrt(2))))
    for _ in range(100):
        auc = stats.auc_interval(torch.randn(30, generator=g) + 1, torch.randn(20, generator=g))
        covered += auc.low <= true <= auc.high
    assert covered >= 89  # 95% of 100; three standard errors below


def test_detectors_against_the_true_exit():
    probe = probe_of(TOY, steps=40)
    prompt, seed = torch.arange(6).repeat_interleave(8), torch.arange(8).repeat(6)
    pairs = Pairs(prompt, seed, draw_noise(seed.tolist(), (16,)))
    exits = ExitSearch(probe, pairs, lambda x, p: TOY.nearest(x) == p).exits()
    errors = []
    for detector in (Drop(0.3), Drop(0.9), LocalMinimum()):
        before = probe.count.total
        errors.append(detector_error(probe, pairs, exits, SwitchAfter(detector, 0.0, 7.5)))
        assert probe.count.total - before >= 40 * len(pairs)
    robust, deep, _ = errors
    inside = sum(pair_exit.timestep is not None for pair_exit in exits)
    for error in errors:
        assert error.early.n == error.never.n == inside
        assert len(error.fired) == len(pairs)
    assert deep.distance is None or robust.distance.value <= deep.distance.value, "a deeper fall comes later"


def test_a_detector_without_exits_has_no_error():
    probe = probe_of(two_points(1.0, 0.499), scale=1.0)
    pairs = Pairs(torch.zeros(2, dtype=torch.long), torch.arange(2), draw_noise([0, 1], (4,)))
    exits = ExitSearch(probe, pairs, lambda x, p: torch.zeros(len(x), dtype=torch.bool)).exits()
    with pytest.raises(ValueError, match="none of 2 pairs memorizes"):
        detector_error(probe, pairs, exits, SwitchAfter())
    with pytest.raises(ValueError, match="two different scales"):
        detector_error(probe, pairs, exits, SwitchAfter(after=0.0))
