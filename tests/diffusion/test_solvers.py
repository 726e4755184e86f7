"""Every sampler against diffusers' scheduler of the same name, guided and not; branches carry the history."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from basinguard.basin.trajectories import GuidedModel, Pairs, run_branch, run_trunk
from basinguard.diffusion.evaluation_count import EvaluationCount, counted
from basinguard.diffusion.noise_schedule import FlowSchedule, NoiseSchedule, to_epsilon
from basinguard.diffusion.sampling import draw_noise, final, sample_trajectory
from basinguard.diffusion.solvers import SOLVERS
from basinguard.diffusion.toy import Memorizer, gaussian_memorizer
from basinguard.guidance.core import Constant, SwitchAt

TOY = gaussian_memorizer(count=16, dim=8, leak=1e-2)
TOY = Memorizer(TOY.points.double(), TOY.leak, TOY.schedule)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm++2m": (DPMSolverMultistepScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
}
PROMPT = torch.zeros(4, dtype=torch.long)


def diffusers_sample(scheduler, steps, noise, switch, scale):
    """Stock CFG loop on the toy, guided at and below `switch`."""
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        y = scheduler.scale_model_input(x, t)
        now = torch.full((len(y),), float(t))
        u, c = TOY(y, now, torch.full_like(PROMPT, -1)), TOY(y, now, PROMPT)
        x = scheduler.step(u + (scale if t <= switch else 0.0) * (c - u), t, x).prev_sample
    return x


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("switch", [999, 500, 100])
def test_equals_diffusers_with_a_switch_anywhere(name, switch):
    noise = draw_noise(range(4), (8,)).double()
    kind, settings = SCHEDULERS[name]
    expected = diffusers_sample(kind(**BETAS, **settings), 20, noise, switch, 5.0)
    rule = SwitchAt(switch, 0.0, 5.0)
    ours = final(sample_trajectory(TOY, noise, PROMPT, TOY.schedule, TOY.schedule.grid(20), rule, name))
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3)  # diffusers keeps its coefficients in float32


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("before", [0.0, -1.0, 1.0])
def test_a_branch_equals_the_whole_trajectory(name, before):
    grid = TOY.schedule.grid(10)
    probe = GuidedModel(TOY, TOY.schedule, grid, 5.0, solver=name)
    pairs = Pairs(PROMPT, torch.arange(4), draw_noise(range(4), (8,)).double())
    states = run_trunk(probe, pairs, before).pair_states
    for index, t in enumerate(grid):
        rule = SwitchAt(float(t), before, 5.0)
        whole = final(sample_trajectory(TOY, pairs.noise, PROMPT, TOY.schedule, grid, rule, name))
        ends = run_branch(probe, states[index], PROMPT, torch.full_like(PROMPT, index))
        torch.testing.assert_close(ends, whole)
    unguided = final(sample_trajectory(TOY, pairs.noise, PROMPT, TOY.schedule, grid, Constant(before), name))
    torch.testing.assert_close(probe.path.latents(states[-1]), unguided)


def test_rows_at_different_places_of_one_batch_keep_their_own_history():
    probe = GuidedModel(TOY, TOY.schedule, TOY.schedule.grid(10), 5.0, solver="pndm")
    pairs = Pairs(PROMPT, torch.arange(4), draw_noise(range(4), (8,)).double())
    states = run_trunk(probe, pairs, 0.0).pair_states
    index = torch.tensor([0, 1, 4, 9])
    together = run_branch(probe, states[index, torch.arange(4)], PROMPT, index)
    for row, i in enumerate(index.tolist()):
        alone = run_branch(probe, states[i, row : row + 1], PROMPT[:1], index[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize(("name", "evals"), [("ddim", 10), ("euler", 10), ("dpm++2m", 10), ("pndm", 11), ("heun", 19)])
def test_evaluations_of_each_sampler(name, evals):
    count, noise = EvaluationCount(), draw_noise([0], (8,)).double()
    final(
        sample_trajectory(
            counted(TOY, count), noise, PROMPT[:1], TOY.schedule, TOY.schedule.grid(10), Constant(1.0), name
        )
    )
    assert count.total == evals


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_equals_diffusers_flow_matcher(shift):
    schedule = FlowSchedule(shift=shift)
    toy, grid, noise = Memorizer(TOY.points, 0.01, schedule), schedule.grid(12), draw_noise(range(4), (8,)).double()
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=(grid / 1000).tolist())
    x = noise
    for t in scheduler.timesteps:
        now = torch.full((4,), float(t), dtype=torch.float64)
        u, c = (_velocity(toy, x, now, p) for p in (torch.full_like(PROMPT, -1), PROMPT))
        x = scheduler.step(u + 4.0 * (c - u), t, x).prev_sample.double()

    def denoise(y, timestep, prompt):
        sigma = schedule.noise(timestep)
        return to_epsilon("flow_prediction", _velocity(toy, y, timestep, prompt), y, 1 - sigma, sigma)

    ours = final(sample_trajectory(denoise, noise, PROMPT, schedule, grid, Constant(4.0), "euler"))
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def _velocity(toy, x, t, prompt):
    eps, sigma = toy(x, t, prompt), toy.schedule.noise(t)[:, None]
    return eps - (x - sigma * eps) / (1 - sigma)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_every_parametrisation_becomes_epsilon(kind):
    a, s = torch.tensor([0.6]), torch.tensor([0.8])
    if kind == "flow_prediction":
        a = 1 - s
    clean, eps = torch.randn(1, 5), torch.randn(1, 5)
    x = a * clean + s * eps
    forms = {"epsilon": eps, "v_prediction": a * eps - s * clean, "sample": clean, "flow_prediction": eps - clean}
    torch.testing.assert_close(to_epsilon(kind, forms[kind], x, a, s), eps)


def test_what_cannot_be_branched_is_named():
    with pytest.raises(ValueError, match=r"'euler_a' cannot be branched.*accepted: ddim, euler"):
        list(
            sample_trajectory(
                TOY,
                draw_noise([0], (8,)).double(),
                PROMPT[:1],
                TOY.schedule,
                TOY.schedule.grid(4),
                Constant(1.0),
                "euler_a",
            )
        )
    with pytest.raises(ValueError, match="'nonsense' is not supported"):
        to_epsilon("nonsense", torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1))


def test_one_step_is_enough_for_every_sampler():
    grid = NoiseSchedule(TOY.schedule.alphas_cumprod).grid(1)
    for name in SOLVERS:
        x = final(
            sample_trajectory(TOY, draw_noise([0], (8,)).double(), PROMPT[:1], TOY.schedule, grid, Constant(1.0), name)
        )
        assert torch.isfinite(x).all()
