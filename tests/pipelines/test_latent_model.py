"""A pipeline in the guard's terms: samplers it can follow, other resolutions, memory that runs out."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from basinguard.basin.trajectories import GuidedModel, pairs_of, run_branch
from basinguard.diffusion.solvers import SOLVERS
from basinguard.pipelines.families.registry import family_of
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.schedulers import solver_of
from support.tiny_pipeline import build_tiny_xl


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_dir):
    return StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)


@pytest.fixture(scope="module")
def xl():
    return build_tiny_xl()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DDIMScheduler, "ddim"),
        (EulerDiscreteScheduler, "euler"),
        (HeunDiscreteScheduler, "heun"),
        (DPMSolverMultistepScheduler, "dpm++2m"),
    ],
)
def test_schedulers_have_our_names(kind, name):
    assert solver_of(kind()) == name
    assert name in SOLVERS


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: EulerAncestralDiscreteScheduler(), "EulerAncestralDiscreteScheduler cannot be probed"),
        (lambda: EulerDiscreteScheduler(use_karras_sigmas=True), "use_karras_sigmas.*True"),
        (lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "sde-dpmsolver"),
        (lambda: DPMSolverMultistepScheduler(solver_order=3), "solver_order"),
        (lambda: PNDMScheduler(), "skip_prk_steps"),
    ],
)
def test_schedulers_that_cannot_be_branched_are_named(scheduler, message):
    with pytest.raises(ValueError, match=message):
        solver_of(scheduler())


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
@pytest.mark.parametrize("family", ["pipe", "xl"])
def test_a_probe_equals_the_stock_pipeline(request, family, solver):
    """Whole trajectories under plain CFG, same noise, against the pipeline's own loop."""
    pipe = request.getfixturevalue(family)
    model = LatentModel(pipe)
    pairs = pairs_of(2, [1, 2], 1, model.latent_shape)
    prompts = ["a red ball", "a blue box"]
    probe = GuidedModel(model.denoiser(prompts), model.schedule, model.schedule.grid(4), 3.0, solver=solver)
    own = pipe.scheduler
    kind = {"ddim": DDIMScheduler, "dpm++2m": DPMSolverMultistepScheduler}[solver]
    settings = {"timestep_spacing": "trailing"} | ({"set_alpha_to_one": True} if solver == "ddim" else {})
    pipe.scheduler = kind.from_config(own.config, **settings)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(prompts, latents=pairs.noise, num_inference_steps=4, guidance_scale=3.0, output_type="latent").images
    pipe.scheduler = own
    with torch.no_grad():
        ours = run_branch(probe, probe.path.begin(pairs.noise), pairs.prompt, torch.zeros_like(pairs.prompt))
    torch.testing.assert_close(ours, stock, rtol=2e-3, atol=2e-3)


def test_xl_is_told_of_another_empty_prompt_where_its_pipeline_says_so(xl):
    """Zeros unless `force_zeros_for_empty_prompt` is off: then what its text encoders make of ""."""
    states = family_of(xl).condition(xl, ["a red ball"], 32, torch.float32)
    assert not states.states[-1].any()
    assert not states.pooled[-1].any()
    assert states.sizes.tolist() == [32, 32, 0, 0, 32, 32]
    xl.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        own = family_of(xl).condition(xl, ["a red ball"], 32, torch.float32)
    finally:
        xl.register_to_config(force_zeros_for_empty_prompt=True)
    assert own.states[-1].any()
    assert torch.equal(own.states[0], states.states[0])


def test_another_resolution_can_be_measured(pipe):
    model = LatentModel(pipe, resolution=64)
    assert model.resolution == 64
    assert model.latent_shape == (4, 32, 32)
    with pytest.raises(ValueError, match="expected a multiple of"):
        LatentModel(pipe, resolution=63)


def test_decoding_that_runs_out_of_memory_goes_on_in_smaller_batches(pipe, monkeypatch):
    model, whole = LatentModel(pipe), pipe.vae.decode
    latents = torch.randn(6, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.decode(latents)

    def small(z, *args, **kwargs):
        if len(z) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(z, *args, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", small)
    with pytest.warns(match="exhausted the memory"), torch.no_grad():
        torch.testing.assert_close(model.decode(latents), expected, rtol=1e-4, atol=1e-4)
