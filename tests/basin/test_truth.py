"""Measured exits and widths against the two-point memorizer, whose exits are known exactly."""

import numpy as np
import pytest
import torch

from basinguard.basin.curves import mean_width, median_exit
from basinguard.basin.exit_search import ExitSearch
from basinguard.basin.trajectories import GuidedModel, Pairs, run_trunk
from basinguard.core import stats
from basinguard.diffusion.noise_schedule import FlowSchedule
from basinguard.diffusion.sampling import draw_noise
from basinguard.diffusion.toy import exact_exits, gaussian_memorizer, two_points

SEEDS = 24
POPULATION = 200


class Stacked:
    """Many two-point memorizers in one batch: the last coordinate of a state says which, a clean value without noise.

    So one call measures them all, and prompt k of the probe is prompt 0 of memorizer k.
    """

    def __init__(self, toys):
        self.toys, self.schedule = toys, toys[0].schedule
        self.points = torch.stack([toy.points for toy in toys])  # [K, 2, D]
        self.odds = torch.tensor([np.log((1 - toy.leak) / toy.leak) for toy in toys])

    def noise(self, which, noise):
        mark = self.schedule.signal(torch.tensor(999)) * which.double()
        return torch.cat([noise.double(), mark[:, None]], 1)

    def __call__(self, x, timestep, prompt):
        a, s = (f(timestep)[:, None] for f in (self.schedule.signal, self.schedule.noise))
        which = (x[:, -1:] / a).round().long()[:, 0]
        y = x[:, :-1] / a
        square = (y[:, None] - self.points[which]).square().sum(2)
        log_odds = (square[:, 1] - square[:, 0]) / (2 * (s / a)[:, 0] ** 2)
        log_odds = log_odds + torch.where(prompt >= 0, self.odds[which], 0.0)
        p = torch.sigmoid(log_odds)[:, None]
        mean = p * self.points[which, 0] + (1 - p) * self.points[which, 1]
        return torch.cat([(x[:, :-1] - a * mean) / s, torch.zeros_like(a)], 1)

    def nearest_own(self, x, prompt):
        distance = (x[:, None, :-1] - self.points[prompt]).norm(dim=2)
        return distance[:, 0] < distance[:, 1]


def measured_and_true(rng, settings):
    """One random grid and scale, many random memorizers: exits found and exact, both [settings, SEEDS], and each."""
    steps, scale, dim = int(rng.integers(20, 51)), float(rng.uniform(2, 10)), int(rng.integers(2, 9))
    toys = [
        two_points(float(rng.uniform(2, 12)), float(10 ** rng.uniform(-5, -1)), dim, seed=int(rng.integers(10**6)))
        for _ in range(settings)
    ]
    stacked = Stacked(toys)
    prompt = torch.arange(settings).repeat_interleave(SEEDS)
    seed = torch.arange(len(prompt)) + int(rng.integers(10**6))
    noise = draw_noise(seed.tolist(), (dim,))
    pairs = Pairs(prompt, seed, stacked.noise(prompt, noise))
    probe = GuidedModel(stacked, stacked.schedule, stacked.schedule.grid(steps), scale, chunk=4096)
    exits = ExitSearch(probe, pairs, stacked.nearest_own).exits()
    rows = []
    for k, toy in enumerate(toys):
        own = slice(k * SEEDS, (k + 1) * SEEDS)
        true = [timestep_of(toy, s) for s in exact_exits(toy, noise[own], scale).tolist()]
        rows.append((exits[own], true, toy))
    return steps, scale, rows


def mean_exact_width(toy, scale):
    """Of many noises that nothing was measured on."""
    noise = draw_noise(range(5_000_000, 5_000_000 + POPULATION), toy.points.shape[1:])
    crowd = [timestep_of(toy, s) for s in exact_exits(toy, noise, scale, steps=100).tolist()]
    return float(np.mean([0.0 if t is None else 1 - t / 999 for t in crowd]))


def timestep_of(toy, sigma):
    if np.isinf(sigma):
        return None
    return 0.0 if sigma == 0 else toy.schedule.timestep(sigma)


def compare(groups, settings, seed, widths=False):
    """Median error of every setting in grid steps, whether censoring agrees, and with `widths` which are covered."""
    rng, errors, agree, covered = np.random.default_rng(seed), [], [], []
    for _ in range(groups):
        steps, scale, rows = measured_and_true(rng, settings)
        for exits, true, toy in rows:
            agree += [(e.timestep is None) == (t is None) for e, t in zip(exits, true, strict=True)]
            both = [(e, t) for e, t in zip(exits, true, strict=True) if e.timestep is not None and t is not None]
            if both:
                middle = [(e.timestep + (e.lower or 0.0)) / 2 - t for e, t in both]
                errors.append(float(np.median(np.abs(middle))) * steps / 1000)
            if widths:
                estimate = mean_width([e.model_copy(update={"caption": k}) for k, e in enumerate(exits)])
                covered.append(estimate.low <= mean_exact_width(toy, scale) <= estimate.high)
    return np.array(errors), np.mean(agree), np.array(covered)


def test_exits_are_the_exact_ones_within_a_grid_step():
    errors, agree, _ = compare(groups=1, settings=6, seed=1)
    assert np.median(errors) <= 1
    assert agree >= 0.98


@pytest.mark.long
def test_exits_and_intervals_over_200_random_settings(capsys):
    errors, agree, covered = compare(groups=8, settings=26, seed=2, widths=True)
    with capsys.disabled():
        print(
            f"\nerror in grid steps: median {np.median(errors):.2f}, 0.9 quantile {np.quantile(errors, 0.9):.2f}, n="
            f"{len(errors)}; never-memorized agrees: {agree:.4f}; width interval covers: "
            f"{stats.wilson(int(covered.sum()), len(covered))}"
        )
    assert len(errors) >= 200
    assert np.median(errors) <= 1
    assert agree >= 0.98
    assert stats.wilson(int(covered.sum()), len(covered)).high >= 0.95


def test_the_exact_exit_is_where_a_fine_sampler_leaves():
    toy = two_points(6.0, 1e-3, dim=3)
    noise = draw_noise(range(8), (3,)).double()
    exact = exact_exits(toy, noise, 5.0, steps=250)
    pairs = Pairs(torch.zeros(8, dtype=torch.long), torch.arange(8), noise)
    probe = GuidedModel(toy, toy.schedule, toy.schedule.grid(125), 5.0, chunk=4096)
    exits = ExitSearch(probe, pairs, lambda x, p: toy.nearest(x) == p).exits()
    for pair_exit, sigma in zip(exits, exact.tolist(), strict=True):
        true = timestep_of(toy, sigma)
        assert (pair_exit.timestep is None) == (true is None)
        assert true is None or (pair_exit.lower or 0.0) - 8 <= true <= pair_exit.timestep + 8


def test_the_formula_of_many_points_says_where_half_of_them_leave():
    toy = gaussian_memorizer()
    seed = torch.arange(24)
    pairs = Pairs(torch.zeros(24, dtype=torch.long), seed, draw_noise(seed.tolist(), (32,)))
    probe = GuidedModel(toy, toy.schedule, toy.schedule.grid(25), 7.5)
    exits = ExitSearch(probe, pairs, lambda x, p: toy.nearest(x) == p).exits()
    ends = run_trunk(probe, pairs).states[-1]
    formula = toy.schedule.timestep(float(toy.exit_sigma(0, toy.points[toy.nearest(ends)]).median()))
    assert abs(median_exit(exits).value - formula) <= 2 * 40


def test_exact_exits_need_two_points():
    with pytest.raises(ValueError, match="has 64"):
        exact_exits(gaussian_memorizer(), torch.zeros(1, 32), 5.0)


def flow_errors(rng, settings):
    """Of one flow: median distance in grid steps of the exits inside, by setting, and whether both say which side.

    An exit inside is neither never nor always: its pair needs guidance, and guidance from late enough is too late.
    """
    steps, scale, dim = int(rng.integers(20, 51)), float(rng.uniform(2, 10)), int(rng.integers(2, 9))
    schedule = FlowSchedule(shift=float(rng.uniform(1, 6)))
    drawn = [(float(rng.uniform(2, 12)), float(10 ** rng.uniform(-5, -1))) for _ in range(settings)]
    toys = [two_points(*each, dim, int(rng.integers(10**6)), schedule) for each in drawn]
    stacked, prompt = Stacked(toys), torch.arange(settings).repeat_interleave(SEEDS)
    seed = torch.arange(len(prompt)) + int(rng.integers(10**6))
    noise, grid = draw_noise(seed.tolist(), (dim,)), schedule.grid(steps)
    probe = GuidedModel(stacked, schedule, grid, scale, chunk=4096)
    exits = ExitSearch(probe, Pairs(prompt, seed, stacked.noise(prompt, noise)), stacked.nearest_own).exits()
    exact = np.array([s for k, toy in enumerate(toys) for s in exact_exits(toy, noise[prompt == k], scale).tolist()])
    sides = np.where(np.isinf(exact), "never", np.where(exact == 0, "always", ""))
    agree = sides == [e.censored for e in exits]
    inside = np.flatnonzero(agree & (sides == ""))
    true = np.interp(1000 * exact[inside] / (1 + exact[inside]), grid.flip(0), range(steps))
    measured = np.interp([exits[i].timestep for i in inside], grid.flip(0), range(steps)) - 0.5  # between two steps
    errors, own = np.abs(measured - true), prompt.numpy()[inside]
    return [float(np.median(errors[own == k])) for k in np.unique(own)], agree


def compare_flows(groups, settings, seed):
    rng, errors, agree = np.random.default_rng(seed), [], []
    for _ in range(groups):
        medians, same = flow_errors(rng, settings)
        errors, agree = errors + medians, [*agree, *same]
    return np.array(errors), np.mean(agree)


def test_exits_of_a_flow_are_the_exact_ones_within_a_grid_step():
    errors, agree = compare_flows(groups=1, settings=3, seed=3)
    assert np.median(errors) <= 1
    assert agree >= 0.98


@pytest.mark.long
def test_exits_of_a_flow_over_200_random_settings(capsys):
    errors, agree = compare_flows(groups=10, settings=24, seed=4)
    with capsys.disabled():
        print(
            f"\nflows: error in grid steps: median {np.median(errors):.2f}, 0.9 quantile "
            f"{np.quantile(errors, 0.9):.2f}, largest {errors.max():.2f}, n={len(errors)}; "
            f"never and always agree: {agree:.4f}"
        )
    assert len(errors) >= 200
    assert errors.max() <= 1
    assert agree >= 0.98
