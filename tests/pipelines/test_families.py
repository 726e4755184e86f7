"""Each family of pipelines as the guard sees it, against the pipeline's own call."""

import inspect
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.modular_pipelines.flux2.denoise import Flux2KleinBaseLoopDenoiser
from diffusers.modular_pipelines.modular_pipeline import BlockState
from safetensors.torch import save_file

from basinguard.diffusion.sampling import draw_noise, final, sample_trajectory
from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.guidance.core import Constant, SwitchAt
from basinguard.pipelines.distillation import distillation_note, fitting_plan
from basinguard.pipelines.families.registry import FAMILIES, family_named, family_of, scale_of
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.lora_files import load_lora
from basinguard.pipelines.modular_guider import RuleGuider
from basinguard.pipelines.protect import protect
from basinguard.pipelines.stock_sampling import sample_batch
from basinguard.similarity.structure import METRIC, Structure
from support.tiny_pipeline import (
    build_tiny_flux2,
    build_tiny_pipeline,
    build_tiny_sd3,
    build_tiny_xl,
    build_tiny_z_image,
)

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
PROMPTS = ["a red ball", "a blue box"]
BUILT = {
    "sd3": build_tiny_sd3,
    "sd3, dynamic": lambda: build_tiny_sd3(**DYNAMIC),
    "sd3, t5": lambda: build_tiny_sd3(t5=True),
    "flux2": build_tiny_flux2,
    "z": build_tiny_z_image,
    "z, dynamic": lambda: build_tiny_z_image(**DYNAMIC),
}


@pytest.fixture(scope="module", params=BUILT, ids=str)
def pipe(request):
    return BUILT[request.param]()


@torch.no_grad()
def own_latents(pipe, noise, scale, count, **options):
    """What the pipeline's own call returns, as the sampler carries it."""
    family, named = family_of(pipe), type(pipe).__name__
    side, weight = family.native_side(pipe), scale - 1 if named == "ZImagePipeline" else scale
    arguments = {"guidance_scale": weight, "num_inference_steps": count, "height": side, "width": side}
    latents = pipe(prompt=list(PROMPTS), latents=noise, output_type="latent", **arguments | options).images
    return family.to_sampler(pipe, latents) if named == "Flux2KleinPipeline" else latents


@torch.no_grad()
def our_latents(model, noise, rule, count):
    """The same of this package's sampler, by the same line on every flow: Euler's method."""
    denoise, prompt = model.denoiser(PROMPTS), torch.arange(len(PROMPTS))
    grid = model.schedule.grid(count)
    return final(sample_trajectory(denoise, noise, prompt, model.schedule, grid, rule))


def test_plain_cfg_is_the_pipelines_own(pipe):
    model = LatentModel(pipe)
    noise = draw_noise([1, 2], model.latent_shape)
    ours, own = our_latents(model, noise, Constant(4.0), 4), own_latents(pipe, noise, 4.0, 4)
    torch.testing.assert_close(ours.float(), own, rtol=1e-5, atol=1e-5)
    assert (ours - noise).abs().amax() > 0.5, "nothing was denoised"


@pytest.mark.parametrize("family", ["sd3", "flux2", "z"])
def test_a_family_is_probed(family):
    """Where everything counts as a copy, the exit of every pair is the lowest timestep of the pipeline's own grid."""
    model = LatentModel(BUILT[family]())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    everything = Structure(METRIC.model_copy(update={"threshold": -1.0}))
    plan = ProbePlan(captions=2, seeds=1, timesteps=3, scale=3.0)
    report = Guard(TrainingSet(images, tuple(PROMPTS)), everything, plan).measure(model, epoch=0, train_step=0)
    assert report.samples.risk.value == 1
    lowest = float(model.schedule.grid(3)[-1])
    assert {(e.timestep, e.censored) for e in report.basin.exits} == {(lowest, "always")}
    assert report.basin.exits[0].sigma == pytest.approx(lowest / (1000 - lowest))
    assert report.basin.width.value == pytest.approx(1 - lowest / 999)


RULES = {
    "none first": SwitchAt(900, before=0.0, after=4.0),
    "opposite first": SwitchAt(900, before=-2.0, after=4.0),
    "conditional first": SwitchAt(900, before=1.0, after=None),
    "a transition for each": SwitchAt((950.0, 800.0), before=0.0, after=4.0),
}


@pytest.mark.parametrize("family", ["sd3", "z"])
@pytest.mark.parametrize("rule", RULES)
def test_protect_delivers_what_our_sampler_samples(family, rule):
    """The rule inside the pipeline's own call, one evaluation less where a branch is not needed."""
    pipe = BUILT[family]()
    model, shipped = LatentModel(pipe), RULES[rule]
    noise, sampling = draw_noise([1, 2], model.latent_shape), SamplingOptions(timesteps=6, scale=4.0)
    ours = our_latents(model, noise, shipped if shipped.after else SwitchAt(900, 1.0, 4.0), 6)
    own = sample_batch(pipe, PROMPTS, [1, 2], shipped, sampling, latents=noise, output_type="latent")
    torch.testing.assert_close(own.images, ours.float(), rtol=1e-5, atol=1e-5)
    grid, points = model.schedule.grid(6), torch.as_tensor(shipped.transition).reshape(-1)
    lone = int((grid > points.max()).sum()) if shipped.before >= 0 else 0
    assert own.unet_evals == 2 * (2 * 6 - lone)
    plain = sample_batch(pipe, PROMPTS, [1, 2], None, sampling, latents=noise, output_type="latent").images
    assert (plain - own.images).abs().amax() > 1e-3, "the rule changes nothing"


@torch.no_grad()
@pytest.mark.parametrize("rule", ["opposite first", pytest.param("a transition for each", marks=pytest.mark.long)])
def test_the_guider_delivers_what_our_sampler_samples(rule):
    """The same rule in the denoising block of Flux.2 klein's modular pipeline, on its packed latents."""
    pipe, shipped = build_tiny_flux2(), RULES[rule]
    model = LatentModel(pipe)
    noise = draw_noise([1, 2], model.latent_shape)
    texts = model.family.condition(pipe, PROMPTS, model.resolution, torch.float32)
    uncond = texts.states[-1:].expand(2, -1, -1)
    places = {"txt_ids": texts.places, "negative_txt_ids": texts.places, "latent_ids": pipe._prepare_latent_ids(noise)}
    words = {"prompt_embeds": texts.states[:2], "negative_prompt_embeds": uncond, "joint_attention_kwargs": None}
    parts = SimpleNamespace(guider=RuleGuider.for_scheduler(shipped, pipe.scheduler), transformer=pipe.transformer)
    pipe.scheduler.set_timesteps(6, **model.family.spacing(pipe, model.resolution, 6))
    latents, block = noise.flatten(2).transpose(1, 2), Flux2KleinBaseLoopDenoiser()
    for index, timestep in enumerate(pipe.scheduler.timesteps):
        state = BlockState(**words, **places, num_inference_steps=6, latents=latents, latent_model_input=latents)
        state.timestep = timestep.expand(2)
        block(parts, state, index, timestep)
        latents = pipe.scheduler.step(state.noise_pred, timestep, latents).prev_sample
    ours = our_latents(model, noise, shipped, 6).float()
    torch.testing.assert_close(latents.transpose(1, 2).reshape(ours.shape), ours, rtol=1e-5, atol=1e-5)


def test_a_pipeline_that_calls_twice_is_pointed_to_the_guider():
    with pytest.raises(
        TypeError, match=r"Flux2KleinPipeline does not evaluate both.*give its modular pipeline a RuleGu"
    ):
        protect(build_tiny_flux2(), SwitchAt(600))


def loaded_from(pipe, place):
    pipe.register_to_config(_name_or_path=place)
    return pipe


def consistent(pipe):
    """A latent consistency model, which is told the guidance scale."""
    pipe.unet.register_to_config(time_cond_proj_dim=16)
    return pipe


CACHED = "hub/models--stabilityai--sdxl-turbo/snapshots/aaaa"


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_tiny_flux2(is_distilled=True),
        lambda: build_tiny_z_image(shift=3.0),
        lambda: loaded_from(build_tiny_sd3(), "models/sd35-large-turbo"),
        lambda: loaded_from(build_tiny_xl(), CACHED),
        lambda: consistent(build_tiny_pipeline()),
    ],
    ids=["klein", "turbo", "by folder", "in the hub's cache", "consistency"],
)
def test_a_distilled_model_takes_no_rule(build):
    pipe = build()
    assert family_of(pipe).distilled(pipe)
    with pytest.raises(ValueError, match="Pipeline is guidance-distilled: it has no unconditional branch") as caught:
        protect(pipe, SwitchAt(600))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 28])
def test_a_flows_grid_is_the_pipelines_own(pipe, count):
    def interrupt(pipe, index, timestep, tensors):
        pipe._interrupt = True  # as diffusers' manual says: the other steps are passed over
        return tensors

    model = LatentModel(pipe)
    own_latents(pipe, draw_noise([1, 2], model.latent_shape), 1.0, count, callback_on_step_end=interrupt)
    assert model.schedule.grid(count).tolist() == pipe.scheduler.timesteps.tolist()


def test_a_picture_returns_from_its_latents(pipe):
    """To the VAE's latents and back is the identity, whatever is packed, shifted and scaled between."""
    model = LatentModel(pipe)
    latents = draw_noise([3], model.latent_shape)
    family = family_of(pipe)
    torch.testing.assert_close(family.to_sampler(pipe, family.to_vae(pipe, latents)), latents)
    images = torch.rand(1, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    assert model.encode(images).shape == (1, *model.latent_shape)
    assert model.decode(latents).shape == images.shape


def test_what_was_saved_is_opened_by_its_class(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    opened = load_pipeline(tmp_path)
    assert type(opened) is type(pipe)
    assert family_of(opened) is family_of(pipe)
    model = LatentModel(opened)
    noise = draw_noise([1, 2], model.latent_shape)
    assert torch.equal(
        our_latents(model, noise, Constant(2.0), 2), our_latents(LatentModel(pipe), noise, Constant(2.0), 2)
    )


LORAS = {"sd3": "transformer", "flux2": "transformer", "z": "transformer", "z, ComfyUI's names": "diffusion_model"}


@torch.no_grad()
@pytest.mark.parametrize("name", LORAS)
def test_a_lora_acts_as_diffusers_own_reader_has_it(name, tmp_path):
    """Rank 2 and alpha 8, which the header says, or a tensor of each layer in ComfyUI's layout."""
    ours, theirs = (BUILT[name.split(",")[0]]() for _ in range(2))
    layers = {n: m for n, m in ours.transformer.named_modules() if n.endswith(("to_q", "to_v"))}
    generator, prefix = torch.Generator().manual_seed(0), LORAS[name]
    state = {}
    for layer, module in layers.items():
        for half, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
            state[f"{prefix}.{layer}.lora_{half}.weight"] = torch.randn(*shape, generator=generator)
    config = {"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_q", "to_v"]}
    said = {"lora_adapter_metadata": json.dumps(config)} if prefix == "transformer" else None
    if said is None:
        state |= {f"{prefix}.{layer}.alpha": torch.tensor(8.0) for layer in layers}
    save_file(state, tmp_path / "mine.safetensors", metadata=said)
    load_lora(ours, tmp_path / "mine.safetensors")
    theirs.load_lora_weights(tmp_path / "mine.safetensors")
    noise, plain = draw_noise([1, 2], LatentModel(ours).latent_shape), BUILT[name.split(",")[0]]()
    drawn = [our_latents(LatentModel(p), noise, Constant(2.0), 2) for p in (ours, theirs, plain)]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-5, atol=1e-5)
    assert (drawn[0] - drawn[2]).abs().amax() > 1e-2, "the adapter does nothing"


@pytest.mark.parametrize(
    "build", [build_tiny_pipeline, build_tiny_xl, build_tiny_sd3, build_tiny_flux2, build_tiny_z_image]
)
def test_the_usual_scale_is_that_of_the_pipelines_own_call(build):
    pipe = build()
    own = inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
    assert family_of(pipe).call_options(pipe, scale_of(pipe, SamplingOptions()))["guidance_scale"] == own
    assert scale_of(pipe, SamplingOptions(scale=7.5)) == 7.5


def test_a_plan_is_sampled_as_the_family_is_unless_it_says_otherwise():
    plan, pipe = ProbePlan(captions=3, budget="5%"), build_tiny_sd3()
    assert fitting_plan(pipe, plan) == replace(plan, scale=7.0)
    assert fitting_plan(pipe, replace(plan, scale=3.0)).scale == 3.0
    assert distillation_note(pipe) == ""
    distilled = build_tiny_flux2(is_distilled=True)
    assert asdict(fitting_plan(distilled, plan)) == asdict(plan) | {"scale": 1.0}
    assert replace(fitting_plan(distilled, plan), timesteps=3).scale == 1.0
    assert "no rule can act on it" in distillation_note(distilled)


def test_an_unknown_class_lists_those_that_are_read():
    with pytest.raises(ValueError, match=f"FluxPipeline is not read.*{', '.join(f.class_name for f in FAMILIES)}"):
        family_named("FluxPipeline")


@pytest.mark.parametrize("setting", [{"stochastic_sampling": True}, {"invert_sigmas": True}])
def test_a_flow_matcher_that_is_not_eulers_is_named(setting):
    with pytest.raises(ValueError, match=rf"{next(iter(setting))}.*cannot be followed"):
        LatentModel(build_tiny_sd3(**setting))


def test_the_memory_of_an_sd3_without_one_of_its_clip_encoders_is_refused_by_name():
    configs = {"transformer": {"joint_attention_dim": 8, "pooled_projection_dim": 4}, "text_encoder": {}}
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has no text_encoder_2: only the third"):
        family_named("StableDiffusion3Pipeline").state_shapes(configs)
