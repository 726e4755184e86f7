"""The promise: on a model whose true risk is known, it is broken in at most delta of the calibrations."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from basinguard.basin.trajectories import GuidedModel, run_branch, run_trunk
from basinguard.calibration.candidate import Candidate
from basinguard.calibration.fixed_sequence import fixed_sequence
from basinguard.calibration.promise import require_provable, require_terms, shortfall
from basinguard.calibration.terms import CalibrationTerms
from basinguard.calibration.trial import calibration_pairs
from basinguard.diffusion.toy import gaussian_memorizer

TOY = gaussian_memorizer(count=16, dim=8, leak=1e-2)
GRID = TOY.schedule.grid(12)
PROBE = GuidedModel(TOY, TOY.schedule, GRID, 4.0, chunk=4096)


def judge(latents, prompt):
    return TOY.nearest(latents) == prompt


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


def test_too_few_pairs_says_how_many_more():
    assert shortfall(0.05, 0.05, 59) == ""
    assert "1 more pairs would" in shortfall(0.05, 0.05, 58)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.0}, {"delta": -0.1}])
def test_alpha_and_delta_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        require_terms(**{"alpha": 0.1, "delta": 0.1, **wrong})


@pytest.mark.long
def test_the_promise_of_whole_calibrations_is_broken_in_at_most_delta_of_500(tmp_path, monkeypatch):
    """Search, ladders, tests and choice on the toy, by the recipe that publishes them."""
    recipe, out = (
        Path(__file__).parents[2] / "recipes" / "studies" / "calibration_montecarlo.py",
        tmp_path / "montecarlo.json",
    )
    monkeypatch.setattr(sys, "argv", [str(recipe), "--out", str(out)])
    with torch.enable_grad():  # puts back what the recipe switches off for the whole process
        runpy.run_path(str(recipe), run_name="__main__")
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    for design in row["designs"].values():
        assert design["broken"]["n"] == 500
        assert design["broken"]["value"] <= row["delta"] + 3 * (row["delta"] * (1 - row["delta"]) / 500) ** 0.5
        assert design["promised"]["value"] > 0.9


def test_pairs_that_can_prove_nothing_are_refused_with_those_that_are_missing():
    """A spotless proof at half of delta: ln(0.025) / ln(0.95) = 71.9, so 72 pairs."""
    require_provable(CalibrationTerms(pairs=72))
    with pytest.raises(ValueError, match=r"pairs=71, delta shared by 2 settings: .*; 1 more pairs would"):
        require_provable(CalibrationTerms(pairs=71))
