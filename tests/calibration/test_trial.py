"""What a trial samples is what the sampler does, at the price it says; pairs share no noise."""

from dataclasses import replace

import pytest
import torch

from basinguard.basin.trajectories import GuidedModel, run_branch, run_prefix, run_trunk
from basinguard.calibration.grids import refined_grid
from basinguard.calibration.rules import plain_cfg, rule
from basinguard.calibration.terms import Setting
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.diffusion.sampling import draw_noise
from basinguard.diffusion.toy import gaussian_memorizer

TOY = gaussian_memorizer(count=16, dim=8, leak=1e-2)
GRID = TOY.schedule.grid(12)
PROBE = GuidedModel(TOY, TOY.schedule, GRID, 4.0, chunk=4096)


def trial(count=8, probe=PROBE, **options):
    return Trial(probe, calibration_pairs(4, count, (8,), 0), **options)


def at(position, **setting):
    return rule(Setting(**setting), float(GRID[position]), TOY.schedule, 4.0)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "dpm++2m", "pndm"])
def test_a_rule_of_constant_guidance_ends_where_plain_cfg_does_and_costs_what_it_does(solver):
    """Scale 4 before and after a transition is plain CFG: two ways through the code, one result."""
    pairs = calibration_pairs(4, 8, (8,), 0)
    bench = Trial(replace(PROBE, solver=solver), pairs)
    plain, evals = bench.sample(plain_cfg(4.0, TOY.schedule))
    begin, prompt = bench.probe.path.begin(pairs.noise), pairs.prompt
    torch.testing.assert_close(plain, run_branch(bench.probe, begin, prompt, 0 * prompt))
    for position in (11, 5):
        prefix = at(position, before=4.0001)  # so near to 4 that it differs by less than the tolerance
        ends, price = bench.sample(prefix)
        torch.testing.assert_close(ends, plain, rtol=1e-2, atol=1e-2)
        assert price == evals == 2 * {"heun": 23, "pndm": 13}.get(solver, 12)


def test_a_prefix_without_guidance_costs_one_evaluation_a_step():
    bench = trial()
    assert [bench.sample(at(k))[1] for k in (11, 10, 9)] == [12 + 1, 12 + 2, 12 + 3]


def test_sharing_what_comes_before_the_transition_changes_nothing():
    shared, alone = trial(), trial()
    shared.sample(at(8))
    count = shared.probe.count.total
    ends, _ = shared.sample(at(6))
    assert shared.probe.count.total - count == 8 * 2 * 6, "only what comes after the transition is evaluated"
    assert torch.equal(ends, alone.sample(at(6))[0])


@pytest.mark.parametrize("before", [0.0, -1.0])
@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m", "pndm"])
def test_a_prefix_is_the_trunk_as_far_as_it_is_asked_for(solver, before):
    probe, pairs = replace(PROBE, solver=solver), calibration_pairs(4, 8, (8,), 0)
    whole = run_trunk(probe, pairs, before).pair_states
    count = probe.count.total
    three = run_prefix(probe, pairs, before, [], 3)
    each = int(probe.path.first[3]) * (1 if before == 0 else 2)
    assert probe.count.total - count == 8 * each, "no step more"
    five = run_prefix(probe, pairs, before, three, 5)
    assert len(five) == 6
    torch.testing.assert_close(torch.stack(five), whole[:6])


@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "pndm"])
def test_finer_steps_of_a_sampler_with_a_memory_are_refused(solver):
    with pytest.raises(ValueError, match=r"refine=2 with sampler .* its memory belongs to steps of one size"):
        trial(probe=replace(PROBE, solver=solver)).sample(at(6, refine=2))


def test_finer_steps_cost_what_they_cost_and_end_where_they_should():
    assert refined_grid(GRID, 8, 1).tolist() == GRID[8:].tolist()
    fine = refined_grid(GRID, 8, 3).tolist()
    assert fine[::3] == GRID[8:].tolist()
    assert sorted(set(fine), reverse=True) == fine
    assert [trial().sample(at(11, refine=r))[1] for r in (1, 3)] == [11 + 2, 11 + 6]


def test_an_anchor_replaces_the_unconditional_branch_and_cures_one_that_memorizes():
    def leaky(x, timestep, prompt):
        return TOY(x, timestep, prompt.clamp(min=0))  # its unconditional branch draws point 0, whatever the prompt

    leaking = Trial(replace(PROBE, denoise=leaky), calibration_pairs(1, 40, (8,), 0), anchored=TOY)
    copies = [float((TOY.nearest(leaking.sample(at(11, anchor=a))[0]) == 0).float().mean()) for a in (False, True)]
    assert copies[0] > 0.9
    assert copies[1] < 0.3
    with pytest.raises(ValueError, match="needs a LoRA"):
        trial().sample(at(11, anchor=True))


def test_pairs_are_spread_over_captions_and_share_no_noise():
    pairs = calibration_pairs(5, 12, (8,), first_seed=100)
    assert torch.bincount(pairs.prompt).tolist() == [3] * 5
    assert len(pairs.seed.unique()) == len(pairs) == 15
    assert torch.equal(pairs.noise[4], draw_noise([104], (8,))[0])
    assert len(calibration_pairs(500, 40, (8,), 0)) == 40


@pytest.mark.parametrize(("captions", "count"), [(0, 4), (4, 0)])
def test_nothing_to_sample_is_refused(captions, count):
    with pytest.raises(ValueError, match="at least 1 of each"):
        calibration_pairs(captions, count, (8,), 0)
