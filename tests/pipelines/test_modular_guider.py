"""The guider inside the real denoising blocks of four families, on tiny randomly initialised models."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel, QwenImageTransformer2DModel
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.flux2.denoise import Flux2KleinBaseLoopDenoiser
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.qwenimage.denoise import QwenImageLoopDenoiser
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3T2ICoreDenoiseStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser

from basinguard.guidance.core import Constant, SwitchAt, resolve
from basinguard.guidance.dynamic import SwitchAfter
from basinguard.guidance.schedules import Schedule
from basinguard.pipelines.modular_guider import RuleGuider
from support import tiny_pipelines as tiny
from support.tiny_pipeline import build_scheduler

STEPS = 4


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(name, *shape):
    return {name: draw(*shape), f"negative_{name}": -draw(*shape)}


def sdxl():
    torch.manual_seed(0)
    ids = torch.zeros(2, 6)
    state = {
        **pair("prompt_embeds", 2, 5, 16),
        **pair("pooled_prompt_embeds", 2, 16),
        **{"add_time_ids": ids, "negative_add_time_ids": ids, "timestep_cond": None, "cross_attention_kwargs": None},
    }
    return StableDiffusionXLLoopDenoiser(), {"unet": tiny.sdxl_unet()}, state, draw(2, 4, 8, 8), build_scheduler()


def sd3():
    pipe, _ = tiny.build("StableDiffusion3Pipeline")
    state = {**pair("prompt_embeds", 2, 5, 16), **pair("pooled_prompt_embeds", 2, 16), "joint_attention_kwargs": None}
    parts = {"transformer": pipe.transformer}
    return StableDiffusion3LoopDenoiser(), parts, state, draw(2, 4, 8, 8), FlowMatchEulerDiscreteScheduler()


def flux2():
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    model = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
        **sizes,
    )
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0), torch.zeros(1))
    words = torch.cartesian_prod(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.arange(5.0))
    state = {
        **pair("prompt_embeds", 2, 5, 16),
        **{"latent_ids": grid.expand(2, -1, -1), "joint_attention_kwargs": None},
        **{"txt_ids": words.expand(2, -1, -1), "negative_txt_ids": words.expand(2, -1, -1)},
    }
    parts = {"transformer": model.eval()}
    return Flux2KleinBaseLoopDenoiser(), parts, state, draw(2, 16, 4), FlowMatchEulerDiscreteScheduler()


def qwen():
    torch.manual_seed(0)
    model = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    state = {
        **pair("prompt_embeds", 2, 5, 16),
        **{"prompt_embeds_mask": torch.ones(2, 5).long(), "negative_prompt_embeds_mask": torch.ones(2, 5).long()},
        **{"attention_kwargs": None, "additional_cond_kwargs": {}, "denoiser_input_fields": {}},
        "img_shapes": [[(1, 4, 4)]] * 2,
    }
    state["denoiser_input_fields"] = {"img_shapes": state["img_shapes"]}
    parts = {"transformer": model.eval()}
    return QwenImageLoopDenoiser(), parts, state, draw(2, 16, 16), FlowMatchEulerDiscreteScheduler()


FAMILIES = {"SDXL": sdxl, "SD3": sd3, "Flux 2 (true CFG)": flux2, "Qwen-Image": qwen}


def run(family, guider, **changes):
    """The latents after a short trajectory through the family's own denoising block, and the calls of its model."""
    block, parts, state, latents, scheduler = FAMILIES[family]()
    model, calls = next(iter(parts.values())), []
    model.register_forward_hook(lambda *_: calls.append(1))
    components = SimpleNamespace(guider=guider, **parts)
    scheduler.set_timesteps(STEPS)
    state = BlockState(**state | changes, num_inference_steps=STEPS)
    for index, timestep in enumerate(scheduler.timesteps):
        state.latents = state.scaled_latents = state.latent_model_input = latents
        state.timestep = timestep.expand(2)
        block(components, state, index, timestep)
        latents = scheduler.step(state.noise_pred, timestep, latents).prev_sample
    return latents, calls


def make(family, rule, **options):
    return RuleGuider.for_scheduler(rule, FAMILIES[family]()[-1], **options)


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_constant_equals_the_stock_guider_to_the_bit(family):
    stock, calls = run(family, ClassifierFreeGuidance(guidance_scale=4.0))
    guided, ours = run(family, make(family, Constant(4.0)))
    assert torch.equal(guided, stock)
    assert len(ours) == len(calls) == 2 * STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_opposite_guidance_is_swapped_embeddings_at_one_plus_scale(family):
    state = FAMILIES[family]()[2]
    names = [name for name in state if f"negative_{name}" in state]
    swapped = {name: state[f"negative_{name}"] for name in names}
    swapped |= {f"negative_{name}": state[name] for name in names}
    opposite, _ = run(family, make(family, Constant(-2.0)))
    other, _ = run(family, ClassifierFreeGuidance(guidance_scale=3.0), **swapped)
    if family == "Qwen-Image":  # its block rescales to the norm of the conditional half, which swapping swaps too
        assert not close(opposite, run(family, ClassifierFreeGuidance(guidance_scale=3.0))[0])
    else:
        assert close(opposite, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_0_evaluates_the_unconditional_branch_alone(family):
    state = FAMILIES[family]()[2]
    negative = {name: state[f"negative_{name}"] for name in state if f"negative_{name}" in state}
    alone, _ = run(family, ClassifierFreeGuidance(enabled=False), **negative)
    guided, calls = run(family, make(family, Constant(0.0)))
    assert close(guided, alone)
    assert len(calls) == STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_at_scale_0_costs_one_evaluation(family):
    timesteps = FAMILIES[family]()[-1]
    timesteps.set_timesteps(STEPS)
    free = int((timesteps.timesteps > 600).sum())
    assert 0 < free < STEPS
    _, calls = run(family, make(family, SwitchAt(600, 0.0, None)))
    assert len(calls) == 2 * STEPS - free
    _, calls = run(family, make(family, SwitchAfter(before=0.0, after=None)))
    assert len(calls) == 2 * STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sample_has_its_own_transition(family):
    both, _ = run(family, make(family, SwitchAt((300.0, 900.0), -2.0, 4.0)))
    for row, transition in enumerate((300.0, 900.0)):
        assert close(both[row], run(family, make(family, SwitchAt(transition, -2.0, 4.0)))[0][row])


def test_a_second_trajectory_starts_anew():
    guider = make("SD3", SwitchAfter(before=-2.0))
    assert torch.equal(run("SD3", guider)[0], run("SD3", guider)[0])


def test_both_prompts_are_encoded_between_trajectories():
    guider = make("SD3", Constant(1.0))
    assert guider.num_conditions == 2
    run("SD3", guider)
    assert guider.num_conditions == 2


def test_missing_negative_prompts_are_refused():
    with pytest.raises(ValueError, match="no negative prompt embeddings"):
        run("SD3", make("SD3", Constant(2.0)), negative_prompt_embeds=None)


def test_guidance_rescale_is_the_stock_one():
    stock, _ = run("SDXL", ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.7))
    assert torch.equal(run("SDXL", make("SDXL", Constant(4.0), guidance_rescale=0.7))[0], stock)


@pytest.mark.parametrize("rule", [SwitchAt(600, -2.0, None), SwitchAfter(), Schedule("cosine")])
def test_the_config_survives_a_save(tmp_path, rule):
    guider = RuleGuider.for_scheduler(rule, build_scheduler(), guidance_scale=5.0)
    guider.save_pretrained(tmp_path)
    again = RuleGuider.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "guider_config.json").read_text())["_class_name"] == "RuleGuider"
    assert again.rule == guider.rule
    assert again._factor(500.0) == guider._factor(500.0) == pytest.approx(0.526, abs=1e-3)
    assert guider.new(guidance_scale=9.0).rule == resolve(rule, 9.0)


def test_a_whole_modular_pipeline(tmp_path):
    own, _ = tiny.build("StableDiffusion3Pipeline")
    pipe = StableDiffusion3T2ICoreDenoiseStep().init_pipeline()
    pipe.update_components(transformer=own.transformer, scheduler=own.scheduler)
    inputs = {**pair("prompt_embeds", 2, 5, 16), **pair("pooled_prompt_embeds", 2, 16), "latents": draw(2, 4, 8, 8)}
    inputs |= {"num_inference_steps": STEPS, "height": 16, "width": 16, "output": "latents"}
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=4.0))
    stock = pipe(**inputs)
    pipe.update_components(guider=make("SD3", SwitchAt(600, 0.0, 4.0)))
    assert not close(pipe(**inputs), stock)
    pipe.update_components(guider=make("SD3", SwitchAt(999, 0.0, None), guidance_scale=4.0))
    assert torch.equal(pipe(**inputs), stock)
