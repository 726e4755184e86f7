"""Our sampler against diffusers' own CFG with the same noise, and what must not depend on batch size."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from basinguard.diffusion.evaluation_count import EvaluationCount, counted
from basinguard.diffusion.noise_schedule import NoiseSchedule
from basinguard.diffusion.sampling import EMPTY, draw_noise, final, sample_trajectory
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.guidance.core import Constant, SwitchAt
from basinguard.guidance.dynamic import SwitchAfter

TOY = gaussian_memorizer(count=16, dim=8, leak=1e-2)
GRID = TOY.schedule.grid(20)


def run(rule, seeds=range(4), prompts=None):
    x = draw_noise(seeds, (8,))
    prompt = torch.zeros(len(x), dtype=torch.long) if prompts is None else torch.tensor(prompts)
    return final(sample_trajectory(TOY, x, prompt, TOY.schedule, GRID, rule))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_equals_diffusers_ddim_with_cfg(kind):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).eval()  # fmt: skip
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    text = torch.randn(2, 4, 8)  # row 0: the prompt, row 1: empty
    schedule = NoiseSchedule(scheduler.alphas_cumprod.double())

    def denoise(x, timestep, prompt):
        out = unet(x, timestep, text[prompt]).sample
        if kind == "epsilon":
            return out
        a, s = (f(timestep).float().reshape(-1, 1, 1, 1) for f in (schedule.signal, schedule.noise))
        return a * out + s * x

    x = reference = draw_noise([0, 1], (4, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps:
            u, c = unet(torch.cat([reference] * 2), t, text[[1, 1, 0, 0]]).sample.chunk(2)
            reference = scheduler.step(u + 5.0 * (c - u), t, reference).prev_sample
        assert schedule.grid(10).tolist() == scheduler.timesteps.tolist()
        ours = final(
            sample_trajectory(denoise, x, torch.zeros(2, dtype=torch.long), schedule, schedule.grid(10), Constant(5.0))
        )
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_noise_of_a_seed_does_not_depend_on_its_batch():
    assert torch.equal(draw_noise([5, 6, 7], (3, 2))[1], draw_noise([6], (3, 2))[0])


@pytest.mark.parametrize("rule", [Constant(4.0), SwitchAt(500, 0.0, 4.0), SwitchAfter(after=4.0)])
def test_a_batch_equals_single_runs(rule):
    alone = torch.cat([run(rule, [seed]) for seed in range(4)])
    torch.testing.assert_close(run(rule), alone, rtol=1e-5, atol=1e-5)


def test_scale_one_is_the_conditional_and_scale_zero_the_unconditional_trajectory():
    x, prompt = draw_noise(range(4), (8,)), torch.zeros(4, dtype=torch.long)
    for scale, only in ((1.0, prompt), (0.0, torch.full_like(prompt, EMPTY))):

        def one_branch(y, timestep, asked, only=only):
            assert torch.equal(asked, only), "a branch that the scale makes irrelevant was evaluated"
            return TOY(y, timestep, asked)

        count = EvaluationCount()
        end = final(sample_trajectory(counted(one_branch, count), x, prompt, TOY.schedule, GRID, Constant(scale)))
        assert torch.equal(end, run(Constant(scale)))
        assert count.total == 20 * 4


def test_rows_at_different_scales_cost_only_what_each_needs():
    rule = SwitchAt((999.0, 0.0), before=0.0, after=4.0)  # row 0 guided throughout, row 1 never
    count, prompt = EvaluationCount(), torch.zeros(2, dtype=torch.long)
    steps = list(sample_trajectory(counted(TOY, count), draw_noise(range(2), (8,)), prompt, TOY.schedule, GRID, rule))
    assert count.total == 20 * (2 + 1)
    torch.testing.assert_close(steps[-1].x_next[0], run(Constant(4.0), range(2))[0])
    torch.testing.assert_close(steps[-1].x_next[1], run(Constant(0.0), range(2))[1])


def test_opposite_guidance_equals_swapped_prompts_at_one_plus_s():
    def swapped(x, timestep, prompt):
        return TOY(x, timestep, torch.where(prompt == EMPTY, 0, EMPTY))

    x, prompt = draw_noise(range(4), (8,)), torch.zeros(4, dtype=torch.long)
    ours = run(Constant(-2.0))
    other = final(sample_trajectory(swapped, x, prompt, TOY.schedule, GRID, Constant(3.0)))
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_a_model_that_returns_nan_is_named():
    def broken(x, timestep, prompt):
        return x * float("nan")

    steps = sample_trajectory(broken, draw_noise([0], (8,)), torch.tensor([0]), TOY.schedule, GRID, Constant(0.0))
    with pytest.raises(FloatingPointError, match="timestep 999 is not finite"):
        next(steps)


@pytest.mark.parametrize("count", [0, 1001])
def test_a_grid_that_does_not_exist_is_refused(count):
    with pytest.raises(ValueError, match="1 to 1000 sampling steps"):
        TOY.schedule.grid(count)


def test_sigma_and_timestep_are_inverse():
    for timestep in (0, 250, 999):
        assert TOY.schedule.timestep(float(TOY.schedule.sigma(timestep))) == timestep
