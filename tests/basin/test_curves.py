"""Exits by bisection against the plain sweep over every candidate; censoring; curves."""

import pytest
import torch

from basinguard.basin.curves import risk_curve, static_transition
from basinguard.basin.exit_search import ExitSearch
from basinguard.basin.gap import top_gap
from basinguard.basin.ordered_search import last_position
from basinguard.basin.trajectories import GuidedModel, Pairs, run_trunk
from basinguard.core.report_parts import Exit
from basinguard.diffusion.sampling import draw_noise, final, sample_trajectory
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.guidance.core import SwitchAt

TOY = gaussian_memorizer(count=32, dim=16, leak=1e-3)
GRID = TOY.schedule.grid(16)


def judge(latents, prompt):
    return TOY.nearest(latents) == prompt


def make_pairs(captions=4, seeds=3):
    prompt, seed = torch.arange(captions).repeat_interleave(seeds), torch.arange(seeds).repeat(captions)
    return Pairs(prompt, seed, draw_noise(seed.tolist(), (16,)))


def make_probe(**changes):
    return GuidedModel(**{"denoise": TOY, "schedule": TOY.schedule, "timesteps": GRID, "scale": 7.5, **changes})


def swept(pairs, before):
    """Outcome of every candidate, each sampled from its noise on its own: [T, N]."""
    rows = []
    for t in GRID:
        ends = final(
            sample_trajectory(TOY, pairs.noise, pairs.prompt, TOY.schedule, GRID, SwitchAt(float(t), before, 7.5))
        )
        rows.append(judge(ends, pairs.prompt))
    return torch.stack(rows)


@pytest.mark.parametrize("before", [0.0, -1.0])
def test_bisection_finds_what_the_sweep_finds(before):
    pairs = make_pairs()
    outcomes = swept(pairs, before)
    model = make_probe()
    exits = ExitSearch(model, pairs, judge, before=before).exits()
    for column, pair_exit in zip(outcomes.T, exits, strict=True):
        if not column[0]:
            assert pair_exit.censored == "never"
            continue
        on_grid = GRID.tolist().index(int(pair_exit.timestep))
        assert column[on_grid], "the reported exit does not reproduce the image"
        assert pair_exit.censored == "always" or not column[on_grid + 1 :][:1].any(), "one step lower still reproduces"
    assert model.count.total < 16 * 32 * len(pairs) / 3, "bisection should cost far less than the sweep"


def test_chunking_changes_no_result():
    pairs = make_pairs()
    whole = ExitSearch(make_probe(), pairs, judge).exits()
    small = ExitSearch(make_probe(chunk=5), pairs, judge).exits()
    assert whole == small


def test_a_shared_seed_is_denoised_once():
    pairs = make_pairs(captions=4, seeds=3)
    model = make_probe()
    states = run_trunk(model, pairs, before=0.0).pair_states
    assert states.shape == (17, 12, 16)
    assert model.count.total == 16 * 3


def test_search_equals_a_scan_for_every_threshold():
    count = 11
    truth = torch.arange(-1, count)

    def reproduces(rows, index):
        return index <= truth[rows]

    assert torch.equal(last_position(reproduces, truth >= 0, count), truth)


def exit_at(timestep, caption=0, seed=0, lower=0.0):
    sigma = None if timestep is None else 1.0
    return Exit(caption=caption, seed=seed, timestep=timestep, sigma=sigma, lower=lower)


def test_width_of_a_caption_that_is_never_memorized_is_zero():
    assert exit_at(None, lower=None).width == 0
    assert exit_at(None, lower=None).censored == "never"
    assert exit_at(999.0).width == 0
    assert exit_at(0.0, lower=None).censored == "always"
    assert exit_at(0.0).width == 1


def test_curve_counts_exits_at_or_below_each_timestep():
    exits = [exit_at(200.0, 0), exit_at(600.0, 1), exit_at(None, 2, lower=None), exit_at(200.0, 3)]
    curve = risk_curve(exits, torch.tensor([800, 600, 400, 200, 100]))
    assert [(t, e.value) for t, e in curve] == [(100, 0), (200, 0.5), (400, 0.5), (600, 0.75), (800, 0.75)]
    assert all(e.low <= e.value <= e.high for _, e in curve)


def test_static_transition_is_the_boldest_within_budget():
    exits = [exit_at(float(t), caption) for caption, t in enumerate((300, 500, 700, 900))]
    grid = torch.tensor([999, 900, 700, 500, 300, 100])
    assert static_transition(exits, grid, alpha=0.25) == 300
    assert static_transition(exits, grid, alpha=0.1) == 100
    never = [exit_at(None, c, lower=None) for c in range(4)]
    assert static_transition(never, grid, alpha=0.1) == 999
    always = [exit_at(100.0, c, lower=None) for c in range(4)]
    assert static_transition(always, grid, alpha=0.1) is None


def test_top_gap_is_the_gap_at_the_noisiest_timestep():
    pairs = make_pairs(captions=2, seeds=2)
    model = make_probe()
    gaps = top_gap(model, pairs)
    first = next(sample_trajectory(TOY, pairs.noise, pairs.prompt, TOY.schedule, GRID, SwitchAt(999, 0.0, 7.5)))
    torch.testing.assert_close(gaps, first.gap)
    assert model.count.total == 2 + 4, "one unconditional evaluation a seed, one conditional a pair"


def test_a_model_that_returns_nan_measures_nothing():
    broken = make_probe(denoise=lambda x, t, p: x * float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        ExitSearch(broken, make_pairs(), judge).exits()
