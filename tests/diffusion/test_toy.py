"""The closed-form memorizer: its own formulas, and the story of the paper on it."""

import math

import pytest
import torch

from basinguard.diffusion.sampling import EMPTY, draw_noise, final, sample_trajectory
from basinguard.diffusion.toy import Memorizer, gaussian_memorizer, stable_diffusion_schedule
from basinguard.guidance.core import Constant, SwitchAt
from basinguard.guidance.dynamic import LocalMinimum, SwitchAfter

TOY = gaussian_memorizer()
SEEDS = range(24)


def copies(rule):
    x, prompt = draw_noise(SEEDS, (32,)), torch.zeros(len(SEEDS), dtype=torch.long)
    ends = final(sample_trajectory(TOY, x, prompt, TOY.schedule, TOY.schedule.grid(30), rule))
    return float((TOY.nearest(ends) == 0).float().mean())


def test_denoiser_is_the_posterior_mean_of_two_points():
    schedule = stable_diffusion_schedule()
    toy = Memorizer(torch.tensor([[1.0], [-1.0]]), leak=0.1, schedule=schedule)
    t, x = torch.tensor([500]), torch.tensor([[0.3]])
    a, s = float(schedule.signal(t)), float(schedule.noise(t))
    plus, minus = 0.9 * math.exp(-((0.3 - a) ** 2) / (2 * s * s)), 0.1 * math.exp(-((0.3 + a) ** 2) / (2 * s * s))
    mean = (plus - minus) / (plus + minus)
    assert float(toy(x, t, torch.tensor([0]))) == pytest.approx((0.3 - a * mean) / s, rel=1e-5)


def test_the_empty_prompt_weighs_all_points_alike():
    far = torch.zeros(1, 32)
    eps = TOY(far, torch.tensor([999]), torch.tensor([EMPTY]))
    a, s = float(TOY.schedule.signal(torch.tensor(999))), float(TOY.schedule.noise(torch.tensor(999)))
    torch.testing.assert_close(-s * eps / a, TOY.points.mean(0, keepdim=True), rtol=0.2, atol=0.02)


def test_the_story():
    assert copies(Constant(7.5)) == 1.0
    assert copies(Constant(0.0)) <= 0.1  # chance is 1 in 64
    assert copies(SwitchAt(250, 0.0, 7.5)) <= 0.15
    assert copies(SwitchAt(800, 0.0, 7.5)) == 1.0
    assert copies(SwitchAfter(LocalMinimum(), before=0.0, after=7.5)) <= 0.15


def test_the_exit_formula_says_where_half_of_the_trajectories_leave():
    x, prompt = draw_noise(SEEDS, (32,)), torch.zeros(len(SEEDS), dtype=torch.long)
    unguided = final(sample_trajectory(TOY, x, prompt, TOY.schedule, TOY.schedule.grid(30), Constant(0.0)))
    median = float(TOY.exit_sigma(0, TOY.points[TOY.nearest(unguided)]).median())
    centre = TOY.schedule.timestep(median)
    assert copies(SwitchAt(centre - 150, 0.0, 7.5)) < 0.5 < copies(SwitchAt(centre + 150, 0.0, 7.5))


@pytest.mark.parametrize("leak", [0.0, 1.0])
def test_a_leak_outside_its_range_is_refused(leak):
    with pytest.raises(ValueError, match="prior mass"):
        gaussian_memorizer(leak=leak)
