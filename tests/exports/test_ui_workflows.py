"""ComfyUI and A1111, emulated, draw what our own sampler draws."""

from __future__ import annotations

import json

import pytest
import torch

from basinguard.diffusion.sampling import draw_noise, sample_trajectory
from basinguard.diffusion.toy import gaussian_memorizer, stable_diffusion_schedule
from basinguard.exports.a1111 import SCHEDULES, a1111_prompt
from basinguard.exports.comfyui import REFINABLE, SAMPLERS, WorkflowFiles, comfyui_workflow
from basinguard.exports.sampler_grids import NOT_COVERED, SCHEDULERS, SIGMAS, fits, grid, steps_before
from basinguard.guidance.core import SwitchAt
from basinguard.pipelines.latent_model import LatentModel
from support.exports import build_guidance, build_record
from support.ui_emulation import a1111, comfyui, held_to

SCALE = 4.0
TIMESTEPS = 20


def ours(model, schedule, timesteps, noise, prompt: int, before: float, transition: float) -> torch.Tensor:
    """States after every step, divided by the signal as k-diffusion keeps them, [steps, B, ...]."""
    rule = SwitchAt(transition, before, SCALE)
    prompts = torch.full((len(noise),), prompt)
    steps = sample_trajectory(model, noise, prompts, schedule, timesteps, rule)
    after = torch.cat([timesteps[1:], torch.tensor([-1.0])])
    return torch.stack([s.x_next / schedule.signal(t).to(noise.dtype) for s, t in zip(steps, after, strict=True)])


@pytest.fixture(scope="module")
def toy():
    memorizer = gaussian_memorizer()
    return memorizer.__class__(memorizer.points.double(), memorizer.leak, memorizer.schedule)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return draw_noise(range(6), (32,)).double()


@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "karras"])
@pytest.mark.parametrize("before", [-2.0, 0.0, 0.5, 1.0])
def test_the_comfyui_workflow_draws_what_we_draw_on_the_toy(pipe, toy, noise, before, scheduler):
    record = build_record(pipe, before=before, transition=800.0)
    workflow = comfyui_workflow(record, scheduler=scheduler, scale=SCALE)
    timesteps = torch.tensor(grid(scheduler, TIMESTEPS)).round()
    theirs = comfyui(workflow, toy, toy.schedule, timesteps, noise, 3)
    expected = ours(toy, toy.schedule, timesteps, noise, 3, before, record.guidance.transition)
    torch.testing.assert_close(theirs, expected, rtol=1e-9, atol=1e-9)


def test_the_emulation_would_notice_a_wrong_switch(pipe, toy, noise):
    record = build_record(pipe, before=-2.0, transition=800.0)
    workflow = comfyui_workflow(record, scale=SCALE)
    for node in ("before", "after"):
        key = "end_at_step" if node == "before" else "start_at_step"
        workflow[node]["inputs"][key] += 1
    timesteps = torch.tensor(grid("simple", TIMESTEPS))
    theirs = comfyui(workflow, toy, toy.schedule, timesteps, noise, 3)
    expected = ours(toy, toy.schedule, timesteps, noise, 3, -2.0, record.guidance.transition)
    assert not torch.allclose(theirs, expected, atol=1e-3)


@pytest.mark.parametrize("schedule", ["Simple", "SGM Uniform", "Karras"])
@pytest.mark.parametrize("before", [0.0, -2.0, 0.5])
def test_the_a1111_prompt_draws_what_we_draw_on_the_toy(pipe, toy, noise, schedule, before):
    """Opposite guidance too: two prompts joined by AND, at the CFG scale of the record."""
    record = build_record(pipe, before=before, transition=800.0)
    timesteps = torch.tensor(grid(SCHEDULES[schedule], TIMESTEPS)).round()
    text = a1111_prompt(record, "a red circle", schedule=schedule)
    theirs = a1111(text, SCALE, toy, toy.schedule, timesteps, noise, 3)
    expected = ours(toy, toy.schedule, timesteps, noise, 3, before, record.guidance.transition)
    torch.testing.assert_close(theirs, expected, rtol=1e-9, atol=1e-9)  # -0.5 and 0.125 are written exactly


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [8, 20, 33, 150])
def test_a_share_switches_after_the_same_step_for_samplers_of_both_orders(pipe, record, steps, order):
    """A second-order sampler counts two evaluations a step; a number of steps would be half as far there."""
    for transition in range(50, 950, 37):
        rule = build_guidance(pipe, before=0.0, transition=float(transition))
        switch = steps_before(rule, "simple", steps)
        if switch >= 2:
            text = a1111_prompt(record.model_copy(update={"guidance": rule}), "a cat", steps=steps)
            share = text.removesuffix("]").rpartition(":")[2]
            assert held_to(share, order * steps) == order * switch - 1


@torch.no_grad()
@pytest.mark.parametrize("before", [-2.0, pytest.param(0.0, marks=pytest.mark.long)])
def test_on_a_unet_that_predicts_v_comfyui_and_a1111_draw_what_we_draw(pipe, before):
    model = LatentModel(pipe)
    denoise, start = model.denoiser(["a red circle"]), draw_noise([1, 2], model.latent_shape)
    timesteps = torch.tensor(grid("simple", 8))
    record = build_record(pipe, before=before)
    expected = ours(denoise, model.schedule, timesteps, start, 0, before, record.guidance.transition)
    workflow = comfyui_workflow(record, steps=8, scale=SCALE)
    theirs = comfyui(workflow, denoise, model.schedule, timesteps, start, 0)
    torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-3)
    plain = ours(denoise, model.schedule, timesteps, start, 0, SCALE, record.guidance.transition)
    assert not torch.allclose(expected, plain, atol=1e-2)
    text = a1111_prompt(record, "a red circle", steps=8)
    typed = a1111(text, SCALE, denoise, model.schedule, timesteps, start, 0)
    torch.testing.assert_close(typed, expected, rtol=1e-3, atol=1e-3)


def test_the_workflow_is_json_whose_links_resolve_and_whose_nodes_are_core(pipe):
    core = {
        *("CheckpointLoaderSimple", "DiffusersLoader", "LoraLoader", "ModelSamplingDiscrete", "CLIPTextEncode"),
        *("EmptyLatentImage", "KSamplerAdvanced", "VAEDecode", "SaveImage"),
    }
    for options in ({}, {"directory": "model"}, {"lora": "cats.safetensors"}):
        workflow = json.loads(json.dumps(comfyui_workflow(build_record(pipe), files=WorkflowFiles(**options))))
        assert all(node["_meta"]["title"] for node in workflow.values())
        assert {node["class_type"] for node in workflow.values()} <= core
        links = [v for node in workflow.values() for v in node["inputs"].values() if isinstance(v, list)]
        assert all(name in workflow and isinstance(output, int) for name, output in links)
    assert workflow["model"]["inputs"] == {"model": ["lora", 0], "sampling": "v_prediction", "zsnr": False}
    assert workflow["before"]["inputs"]["positive"] == ["empty", 0]
    assert workflow["before"]["inputs"]["cfg"] == 3.0


def test_one_sampler_is_enough_when_nothing_lies_on_one_side(pipe):
    always = comfyui_workflow(build_record(pipe, transition=999.0))
    assert "before" not in always
    assert always["after"]["inputs"]["add_noise"] == "enable"
    never = comfyui_workflow(build_record(pipe, transition=1.0), scheduler="simple")
    assert "after" not in never
    assert never["before"]["inputs"]["return_with_leftover_noise"] == "disable"
    assert a1111_prompt(build_record(pipe, before=0.0, transition=999.0), "a cat") == "a cat"


def test_grids_are_those_of_comfyui():
    assert grid("simple", 4).tolist() == [999, 749, 499, 249]
    assert grid("normal", 4).tolist() == [999, 666, 333, 0]
    assert grid("sgm_uniform", 3).tolist() == [999, 666, 333]
    assert grid("ddim_uniform", 4).tolist() == [751, 501, 251, 1]
    karras = grid("karras", 10)  # sigma_max 14.6146, sigma_min 0.0292, rho 7: ComfyUI's printout for 10 steps
    assert karras[0] == pytest.approx(999, abs=1e-6)
    assert karras[-1] == pytest.approx(0, abs=1e-6)
    for name in SCHEDULERS:
        visited = grid(name, 20)
        assert len(visited) == 20
        assert (visited[:-1] > visited[1:]).all()


@pytest.mark.parametrize("scheduler", SIGMAS)
@pytest.mark.parametrize("steps", [10, 20, 37])
def test_by_noise_level_the_switch_is_where_the_noise_level_says(pipe, scheduler, steps):
    for transition in range(20, 980, 23):
        rule = build_guidance(pipe, transition=float(transition))
        assert steps_before(rule, scheduler, steps) == int((SIGMAS[scheduler](steps) > rule.sigma).sum())


def test_a_rule_that_refines_gets_a_finer_second_sampler_or_is_refused(pipe):
    record = build_record(pipe, transition=500.0)
    fine = record.model_copy(update={"guidance": record.guidance.model_copy(update={"refine": 3})})
    for scheduler in REFINABLE:
        workflow = comfyui_workflow(fine, scheduler=scheduler, steps=8)
        first, second = (workflow[name]["inputs"] for name in ("before", "after"))
        assert (second["steps"], second["start_at_step"]) == (24, 3 * first["end_at_step"])
        assert grid(scheduler, 24)[second["start_at_step"]] == grid(scheduler, 8)[first["end_at_step"]]
    with pytest.raises(ValueError, match=r"refines the steps .* 3 times: covered for sampler euler"):
        comfyui_workflow(fine, scheduler="karras")
    with pytest.raises(ValueError, match="refines it 3 times"):
        a1111_prompt(fine, "a cat")


def test_every_sampler_that_is_covered_gets_its_name_and_its_own_noise(pipe):
    for name in SAMPLERS:
        workflow = comfyui_workflow(build_record(pipe), sampler=name, prompt="a red cat", seed=5)
        assert {workflow[part]["inputs"]["sampler_name"] for part in ("before", "after")} == {name}
        assert workflow["before"]["inputs"]["noise_seed"] != workflow["after"]["inputs"]["noise_seed"]
        assert workflow["prompt"]["inputs"]["text"] == "a red cat"


def test_a1111_prompt_form(pipe):
    record = build_record(pipe, before=0.0)
    assert a1111_prompt(record, "a cat", steps=4) == "[:a cat:0.4000]"  # 999 and 749 lie above 500: steps 0 and 1
    assert a1111_prompt(record, "a cat", steps=4, lora="cats") == "[:a cat:0.4000] <lora:cats:1>"
    assert steps_before(record.guidance, "simple", 4) == 2
    opposite = build_record(pipe, before=-2.0)
    assert a1111_prompt(opposite, "a cat", steps=4) == "[a cat::0.4000] :-0.5 AND [:a cat:0.4000]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: a1111_prompt(_before(r, -4.0), "a cat"), "Forge divides by the sum of both"),
        (lambda r: a1111_prompt(_zero(r), "a cat", steps=2), "ignores an edit before the second"),
        (lambda r: a1111_prompt(_zero(r), "cats AND dogs"), "the word AND"),
        (lambda r: comfyui_workflow(_anchored(r)), "from the base model"),
        (
            lambda r: comfyui_workflow(r, sampler="dpm_adaptive"),
            r"'dpm_adaptive' evaluates more than once .* Covered: euler, .* node takes any",
        ),
        (lambda r: WorkflowFiles.of("owner/name"), "names files"),
        (lambda r: a1111_prompt(_zero(r), "a [b|c]"), "mean something else"),
        (lambda r: a1111_prompt(_zero(r), "a cat", schedule="Automatic"), "expected one of Simple"),
        (lambda r: comfyui_workflow(r, scheduler=NOT_COVERED[0]), "covered: simple, normal.*not: beta"),
        (lambda r: comfyui_workflow(r, steps=1001), "expected 1 to 1000"),
        (lambda r: comfyui_workflow(_late(r), scheduler="ddim_uniform", steps=8), "none of 8 steps .* be plain CFG"),
        (lambda r: a1111_prompt(_late(r), "a cat", schedule="DDIM", steps=8), "0 of 8 steps above the transition"),
        (lambda r: comfyui_workflow(_elsewhere(r)), "not on Stable Diffusion's schedule"),
        (lambda r: a1111_prompt(_elsewhere(_zero(r)), "a cat"), "not on Stable Diffusion's schedule"),
    ],
)
def test_what_cannot_be_said_there_is_refused(record, call, message):
    with pytest.raises(ValueError, match=message):
        call(record)


def _late(record):
    """A transition that the first of eight steps of ddim_uniform, at timestep 876, lies below already."""
    signal = float(stable_diffusion_schedule().signal(torch.tensor(900.0)))
    late = {"transition": 900.0, "sigma": (1 - signal**2) ** 0.5 / signal}
    return record.model_copy(update={"guidance": record.guidance.model_copy(update=late)})


def _zero(record):
    return _before(record, 0.0)


def _before(record, scale):
    return record.model_copy(update={"guidance": record.guidance.model_copy(update={"before": scale})})


def _anchored(record):
    return record.model_copy(update={"guidance": record.guidance.model_copy(update={"anchor": True})})


def _elsewhere(record):
    moved = record.model_copy(update={"guidance": record.guidance.model_copy(update={"sigma": 0.5})})
    assert not fits(moved.guidance)
    return moved
