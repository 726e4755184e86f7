"""The promise: on a model whose true risk is known, it is broken in at most delta of the calibrations."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from basinguard.basin.trajectories import GuidedModel, run_branch, run_trunk
from basinguard.calibration.candidate import Candidate, PairScores, RuleCandidate
from basinguard.calibration.fixed_sequence import fixed_sequence
from basinguard.calibration.grids import refined_grid
from basinguard.calibration.promise import shortfall
from basinguard.calibration.rule_search import best, explore, finalists, frontier
from basinguard.calibration.terms import Setting
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.core import stats
from basinguard.core.record import Guidance
from basinguard.diffusion.sampling import draw_noise
from basinguard.diffusion.toy import gaussian_memorizer

TOY = gaussian_memorizer(count=16, dim=8, leak=1e-2)
GRID = TOY.schedule.grid(12)
PROBE = GuidedModel(TOY, TOY.schedule, GRID, 4.0, chunk=4096)


def judge(latents, prompt):
    return TOY.nearest(latents) == prompt


def trial(count=400, first_seed=0, **options):
    return Trial(PROBE, calibration_pairs(4, count, (8,), first_seed), judge, **options)


def outcomes(pairs):
    """Whether each pair is reproduced at each grid position, [T, N]."""
    states = run_trunk(PROBE, pairs, 0.0).pair_states
    rows = [run_branch(PROBE, states[i], pairs.prompt, torch.full_like(pairs.prompt, i)) for i in range(len(GRID))]
    return torch.stack([judge(row, pairs.prompt) for row in rows])


def broken_promises(calibrations, alpha, delta, pairs, seed):
    """Calibrates on draws from a large population of outcomes whose true risk is counted."""
    captions = 4
    population = outcomes(calibration_pairs(captions, 4000, (8,), first_seed=0)).reshape(len(GRID), captions, -1)
    truth = population.float().mean((1, 2))
    rng = np.random.default_rng(seed)
    broken = chosen = 0
    for _ in range(calibrations):
        index = torch.from_numpy(rng.integers(population.shape[2], size=(captions, pairs // captions)))
        drawn = torch.gather(population, 2, index.expand(len(GRID), -1, -1)).reshape(len(GRID), -1)
        pick = sequence(drawn, alpha, delta)
        chosen += pick is not None
        broken += pick is not None and bool(truth[pick] > alpha)
    return broken / calibrations, chosen / calibrations


def sequence(drawn, alpha, delta):
    """The grid position that the product's own stopping rule would ship."""
    order = range(len(GRID))[::-1]
    prompt = torch.arange(drawn.shape[1])
    tested = fixed_sequence((Candidate.measured(drawn[i], prompt, alpha) for i in order), delta)
    return next((i for i, candidate in list(zip(order, tested, strict=False))[::-1] if candidate.proven), None)


def test_the_promise_is_kept():
    rate, chosen = broken_promises(300, alpha=0.2, delta=0.1, pairs=80, seed=0)
    assert chosen > 0.5, "a method that never promises anything keeps every promise"
    assert rate <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 300)


@pytest.mark.long
def test_the_promise_is_kept_over_many_calibrations():
    for alpha, delta in ((0.1, 0.05), (0.2, 0.1), (0.3, 0.2)):
        rate, chosen = broken_promises(3000, alpha, delta, pairs=120, seed=1)
        assert chosen > 0.3
        assert rate <= delta + 3 * np.sqrt(delta * (1 - delta) / 3000)


def test_frontier_goes_from_safe_to_bold_and_stops_at_the_first_failure():
    tried = list(frontier(trial(), Setting(), alpha=0.2, delta=0.1))
    transitions = [candidate.guidance.transition for candidate in tried]
    assert transitions == sorted(transitions)
    assert [c.proven for c in tried] == [True] * (len(tried) - 1) + [tried[-1].proven]
    assert all(c.p_value <= 0.1 for c in tried if c.proven)
    assert all(not c.pilot for c in tried)
    costs = [c.evals_per_sample for c in tried]
    assert costs == [12 + k + 1 for k in range(len(tried))], "one pass for each step before the transition, two after"


def test_best_is_the_boldest_without_and_the_best_aligned_with_a_score():
    plain = list(frontier(trial(), Setting(), alpha=0.2, delta=0.1))
    assert best(plain).guidance.transition == max(c.guidance.transition for c in plain if c.proven)
    scored = list(frontier(trial(align=lambda x, p: -x.norm(dim=1)), Setting(), alpha=0.2, delta=0.1))
    assert best(scored).alignment.value == max(c.alignment.value for c in scored if c.proven)
    assert best([]) is None


def proven(transition, alignment, distance):
    """A candidate whose alignment differs from pair to pair alike for all, so that differences are exact."""
    prompt = torch.arange(40)
    scores = PairScores(alignment + torch.linspace(-0.3, 0.3, 40), prompt) if alignment is not None else None
    quality = stats.cluster_bootstrap(torch.full((40,), distance), prompt) if distance is not None else None
    risk = stats.rate([0] * 40, prompt)
    estimate = scores.estimate() if scores else None
    return RuleCandidate(
        guidance=Guidance(transition=transition, sigma=1.0, before=0.0),
        evals_per_sample=20.0,
        risk=risk,
        p_value=0.01,
        alignment=estimate,
        quality=quality,
        pair_alignment=scores,
        proven=True,
    )


def test_quality_decides_only_between_rules_whose_alignment_cannot_be_told_apart():
    clearly_better, finer = proven(500.0, 0.8, 3.0), proven(600.0, 0.7, 1.0)
    assert best([clearly_better, finer]) is clearly_better, "every pair says so, although the intervals overlap"
    noise = 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    level = replace(
        finer,
        pair_alignment=PairScores(clearly_better.pair_alignment.values + noise - noise.mean() - 1e-4, torch.arange(40)),
    )
    assert best([clearly_better, level]) is level
    assert best([clearly_better, replace(level, proven=False)]) is clearly_better
    assert best([clearly_better, replace(level, quality=None)]) is clearly_better, "half-measured quality is not used"


def test_without_alignment_quality_decides_and_ties_go_to_the_bolder():
    far, near, bolder = (proven(t, None, d) for t, d in ((900.0, 2.0), (500.0, 1.0), (600.0, 1.0)))
    assert best([far, near, bolder]) is bolder
    opposite = replace(near, guidance=near.guidance.model_copy(update={"before": -1.0}))
    assert finalists([far, opposite], 1, allowed=0.1) == [Setting(-1.0)]


def test_quality_is_that_of_the_samples_and_says_how_it_was_measured():
    scored = trial(40, distance=lambda x, p: 1.0 + 0 * x[:, 0], distance_method="distance to nothing")
    candidate = explore(scored, [Setting()], alpha=0.2, positions=[11])[0]
    assert (candidate.quality.value, candidate.quality.n) == (1.0, 4)
    assert candidate.quality.method == "distance to nothing; cluster-bootstrap"
    assert explore(trial(40), [Setting()], alpha=0.2, positions=[11])[0].quality is None


@pytest.mark.parametrize("solver", ["heun", "dpm++2m", "pndm"])
def test_finer_steps_of_a_sampler_with_a_memory_are_refused(solver):
    other = replace(trial(40), probe=replace(PROBE, solver=solver))
    with pytest.raises(ValueError, match=r"refine=2 with sampler .* its memory belongs to steps of one size"):
        explore(other, [Setting(refine=2)], alpha=0.2)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "dpm++2m", "pndm"])
def test_a_rule_of_constant_guidance_ends_where_the_sampler_does_and_costs_what_it_does(solver):
    """Scale 4 before and after the transition is plain CFG, wherever the transition is."""
    ends = []
    constant = replace(
        trial(8), probe=replace(PROBE, solver=solver), judge=lambda x, p: ends.append(x) or TOY.nearest(x) == p
    )
    candidates = explore(constant, [Setting(4.0)], alpha=0.2, positions=[11, 5])
    evals = {"heun": 23, "pndm": 13}.get(solver, 12)
    assert [c.evals_per_sample for c in candidates] == [2 * evals] * 2
    torch.testing.assert_close(ends[0], ends[1])
    prompt = constant.pairs.prompt
    whole = run_branch(constant.probe, constant.probe.path.begin(constant.pairs.noise), prompt, 0 * prompt)
    torch.testing.assert_close(ends[0], whole)


def test_pairs_are_spread_over_captions_and_share_no_noise():
    pairs = calibration_pairs(5, 12, (8,), first_seed=100)
    assert torch.bincount(pairs.prompt).tolist() == [3] * 5
    assert len(pairs.seed.unique()) == len(pairs) == 15
    assert torch.equal(pairs.noise[4], draw_noise([104], (8,))[0])
    assert len(calibration_pairs(500, 40, (8,), 0)) == 40


def test_too_few_pairs_says_how_many_more():
    assert shortfall(0.05, 0.05, 59) == ""
    assert "1 more pairs would" in shortfall(0.05, 0.05, 58)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.0}, {"delta": -0.1}])
def test_alpha_and_delta_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        next(frontier(trial(), Setting(), **{"alpha": 0.1, "delta": 0.1, **wrong}))


def test_finer_steps_cost_what_they_cost_and_end_where_they_should():
    assert refined_grid(GRID, 8, 1).tolist() == GRID[8:].tolist()
    fine = refined_grid(GRID, 8, 3).tolist()
    assert fine[::3] == GRID[8:].tolist()
    assert sorted(set(fine), reverse=True) == fine
    once, thrice = (next(frontier(trial(), Setting(refine=r), alpha=0.2, delta=0.1)) for r in (1, 3))
    assert (once.evals_per_sample, thrice.evals_per_sample) == (11 + 2, 11 + 6)


def test_the_whole_frontier_is_measured_before_anything_is_chosen():
    settings = [Setting(0.0), Setting(0.0, after=1.0), Setting(-1.0)]
    pilot = explore(trial(80), settings, alpha=0.2, positions=[2, 6, 10])
    assert [(c.setting, c.guidance.transition) for c in pilot] == [
        (setting, float(GRID[position])) for setting in settings for position in (10, 6, 2)
    ]
    assert all(c.pilot and not c.proven for c in pilot)
    alone = explore(trial(80), settings[1:2], alpha=0.2, positions=[2, 6, 10])
    assert alone == pilot[3:6], "sharing what comes before the transition changes nothing"


def test_finalists_are_those_that_align_best_where_they_copy_little():
    def toward(x, p):
        return -(x - TOY.points[p]).norm(dim=1)

    pilot = explore(trial(80, align=toward), [Setting(0.0, after=s) for s in (0.0, 2.0, 4.0)], alpha=0.2)
    first, second = finalists(pilot, 2, allowed=0.2)

    def reach(setting):
        return max(c.alignment.value for c in pilot if c.setting == setting and c.risk.value <= 0.2)

    assert reach(first) >= reach(second)
    assert first != Setting(0.0, after=0.0), "no guidance at all does not align best"
    assert finalists(pilot, 3, allowed=-1.0)[0] == Setting(0.0, after=0.0), "none is safe enough: the least dangerous"


def test_an_anchor_replaces_the_unconditional_branch_and_cures_one_that_memorizes():
    def leaky(x, timestep, prompt):
        return TOY(x, timestep, prompt.clamp(min=0))  # its unconditional branch draws point 0, whatever the prompt

    pairs = calibration_pairs(1, 40, (8,), 0)
    leaking = Trial(replace(PROBE, denoise=leaky), pairs, judge, anchored=TOY)
    plain, cured = (explore(leaking, [Setting(anchor=a)], alpha=0.2, positions=[11])[0] for a in (False, True))
    assert plain.risk.value > 0.9
    assert cured.risk.value < 0.3
    with pytest.raises(ValueError, match="needs a LoRA"):
        explore(trial(40), [Setting(anchor=True)], alpha=0.2)


@pytest.mark.parametrize(("captions", "count"), [(0, 4), (4, 0)])
def test_nothing_to_sample_is_refused(captions, count):
    with pytest.raises(ValueError, match="at least 1 of each"):
        calibration_pairs(captions, count, (8,), 0)


@pytest.mark.long
def test_the_promise_of_whole_calibrations_is_broken_in_at_most_delta_of_500(tmp_path, monkeypatch):
    """Pilot, finalists, tests and choice on the toy, by the recipe that publishes them."""
    recipe, out = (
        Path(__file__).parents[2] / "recipes" / "studies" / "calibration_montecarlo.py",
        tmp_path / "montecarlo.json",
    )
    monkeypatch.setattr(sys, "argv", [str(recipe), "--out", str(out)])
    with torch.enable_grad():  # puts back what the recipe switches off for the whole process
        runpy.run_path(str(recipe), run_name="__main__")
    result = json.loads(out.read_text())
    assert result["broken"]["n"] == 500
    assert result["broken"]["value"] <= result["delta"] + 3 * (result["delta"] * (1 - result["delta"]) / 500) ** 0.5
    assert result["promised"]["value"] > 0.95
