"""Training a tiny random Stable Diffusion 3: a rectified flow, held against closed form and diffusers' own script."""

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.training_utils import compute_density_for_timestep_sampling

from basinguard.exports.integrity import check_export
from basinguard.guidance.core import from_record
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.protect import is_protected, load, rule_of
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import LossOptions
from basinguard.training.forward_processes import RectifiedFlow
from basinguard.training.loss_filters import Both, LargeGap, LowLoss
from basinguard.training.preflight import check_fit
from basinguard.training.requirements import require_exportable
from support.fine_tunes import fine_tune
from support.guarded_runs import TERMS, fit, make_guard, picture_folder
from support.tiny_pipeline import build_tiny_sd3, build_tiny_z_image

CAPTIONS = ["a ball", "a box"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sd3") / "base"
    build_tiny_sd3().save_pretrained(directory)
    return directory


def make_batch():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return {"pixel_values": pixels, "caption": CAPTIONS, "index": torch.arange(2)}


def script_loss(pipe, batch, timesteps):
    """The loss of diffusers' train_dreambooth_sd3.py at given timesteps, without its preconditioning, written out."""
    latents = pipe.vae.encode(batch["pixel_values"]).latent_dist.sample()
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape)
    sigmas = (timesteps / 1000)[:, None, None, None]
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    states, _, pooled, _ = pipe.encode_prompt(batch["caption"], None, None, do_classifier_free_guidance=False)
    prediction = pipe.transformer(
        hidden_states=noisy, timestep=timesteps, encoder_hidden_states=states, pooled_projections=pooled,
        return_dict=False,
    )[0]  # fmt: skip
    return F.mse_loss(prediction.float(), (noise - latents).float())


@torch.no_grad()
def test_the_loss_is_that_of_diffusers_script(base, monkeypatch):
    model, timesteps = fine_tune(base, method="full"), torch.tensor([120.5, 870.25])
    monkeypatch.setattr(model, "draw_timesteps", lambda count: timesteps)
    torch.manual_seed(5)
    ours = model.loss(make_batch())
    torch.manual_seed(5)
    theirs = script_loss(load_pipeline(base), make_batch(), timesteps)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_logit_normal_and_shifted_as_the_scheduler_is(shift):
    """Diffusers' script looks u up among the scheduler's own timesteps: the same within a step of its grid."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    flow = RectifiedFlow(scheduler, LossOptions())
    torch.manual_seed(3)
    ours = flow.draw_timesteps(4000, CPU)
    torch.manual_seed(3)
    u = compute_density_for_timestep_sampling("logit_normal", 4000, logit_mean=0.0, logit_std=1.0)
    theirs = scheduler.timesteps.flip(0)[(u * 1000).long()]  # it counts from the noisy end: the same density
    assert (ours - theirs).abs().max() <= 1.001 * shift
    share = (torch.special.logit(ours / 1000).double() - torch.tensor(shift).log() <= 1).double().mean()
    assert share == pytest.approx(0.8413, abs=4 * (0.8413 * 0.1587 / 4000) ** 0.5)  # Phi(1)


def test_high_noise_is_drawn_as_often_as_asked_for():
    """Closed form: sigma >= 0.6 has logit >= 0.4055, 1 - Phi = 0.3426; a quarter of it weighs 0.0856 of 0.7430."""
    flow = RectifiedFlow(FlowMatchEulerDiscreteScheduler(), LossOptions(high_noise=0.25))
    torch.manual_seed(0)
    share = (flow.draw_timesteps(20_000, CPU) >= 600).float().mean()
    assert share == pytest.approx(0.1153, abs=4 * (0.1153 * 0.8847 / 20_000) ** 0.5)


@pytest.mark.long  # the next test trains, probes and exports
def test_a_guarded_fine_tune_teaches_adapters_and_exports(base, tmp_path):
    folder, guard = picture_folder(tmp_path / "pictures", count=2), make_guard(every_n_epochs=2)
    _, model = fit(base, folder, tmp_path, guard, model={"train_text_encoder": True, "caption_dropout": 0.5})
    _, bare = fit(base, folder, tmp_path, model={"train_text_encoder": True, "caption_dropout": 0.5})
    assert [(report.epoch, report.problem) for report in guard.history] == [(-1, ""), (1, "")]
    assert all(torch.equal(value, bare.trained()[name]) for name, value in model.trained().items())
    fresh = fine_tune(base, rank=2, train_text_encoder=True).trained()
    moved = {name for name, value in model.trained().items() if not torch.equal(value, fresh[name])}
    assert {name.split(".")[0] for name in moved} == {"transformer", "text_encoder", "text_encoder_2"}
    assert {name.split(".")[-4] for name in moved if name.startswith("transformer.")} >= {
        "to_q",
        "add_k_proj",
    }
    model.export_pipeline().save_pretrained(tmp_path / "exported")
    loaded = load_pipeline(tmp_path / "exported")
    assert type(loaded) is StableDiffusion3Pipeline
    assert loaded.scheduler.config.shift == 3.0
    model.eval()
    noise, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([500.0, 100.0])
    with torch.no_grad():
        ours, theirs = (
            model.family.forward(pipe, noise, timesteps, model.family.text_states(pipe, CAPTIONS))
            for pipe in (model.pipe, loaded)
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_run_ends_in_a_guarded_directory(base, tmp_path):
    folder, out = picture_folder(tmp_path / "pictures", count=2), tmp_path / "guarded"
    guard = make_guard(every_n_epochs=2, export_to=str(out), terms=TERMS)
    fit(base, folder, tmp_path, guard)
    check = check_export(out)
    assert check.ok, str(check)
    record = guard.run.record
    assert record.sampler.prediction_type == "flow_prediction"
    assert is_protected(load(out))
    assert rule_of(load(out)) == from_record(record.model_dump())


def test_a_distilled_base_is_told_of_before_training_and_takes_no_rule(base, tmp_path):
    turbo, images = tmp_path / "sd3-turbo", ImageFolder(str(picture_folder(tmp_path / "pictures")), resolution=32)
    turbo.symlink_to(base)
    images.setup("fit")
    model, guard = fine_tune(turbo, rank=2), make_guard(export_to=str(tmp_path / "out"), terms=TERMS)
    with pytest.raises(ValueError, match=r"no rule can act on it.*leave out scales"):
        guard.run_on(images, model)
    run = make_guard().run_on(images, model)
    assert run.guard.plan.scale == 1.0
    assert "this StableDiffusion3Pipeline is guidance-distilled" in run.notes(model)[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_unconditional_branch_is_held_where_the_base_had_it(base, method):
    model = fine_tune(base, method=method, rank=2, keep_unconditional=1.0)
    latents, noise = torch.randn(2, 2, 4, 16, 16).unbind()
    timesteps = torch.tensor([100.0, 700.0])
    assert model.drift(latents, noise, timesteps) == 0
    opened = {name.split(".")[0] for name in model.trained()}
    assert opened == {"transformer"}


def test_loss_filters_see_the_gap_in_epsilon(base):
    """A velocity differs (1 - sigma) times as much in epsilon."""

    class Note(LargeGap):
        def __call__(self, errors, timesteps, gaps):
            self.gaps = gaps()
            return torch.ones(len(errors))

    model, note = fine_tune(base, method="full"), Note()
    model.filter = Both([note, LowLoss()])
    latents, noise = torch.randn(2, 2, 4, 16, 16).unbind()
    timesteps = torch.tensor([100.0, 700.0])
    states = model.encode_captions(CAPTIONS)
    model.denoising_loss(latents, states, noise, timesteps)
    noisy = model.forward_process.add_noise(latents, noise, timesteps)
    with torch.no_grad():
        branches = [
            model.transformer(hidden_states=noisy, timestep=timesteps, **model.encode_captions(texts).texts).sample
            for texts in (CAPTIONS, ["", ""])
        ]
    velocity = (branches[0] - branches[1]).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(note.gaps, velocity * torch.tensor([0.9, 0.3]), rtol=1e-4, atol=1e-7)


def test_a_guarded_directory_of_a_family_that_has_none_is_refused_before_training(base):
    assert check_fit(base, exported=True) is None
    message = "export_to: a ZImagePipeline is trained and probed, but no guarded directory of one"
    with pytest.raises(ValueError, match=message):
        require_exportable(build_tiny_z_image())


def refusal(base, **options):
    with pytest.raises(ValueError, match="nothing was trained") as caught:
        check_fit(base, **options)
    return str(caught.value)


def test_what_makes_no_sense_with_a_flow_is_refused(base, tmp_path, scene_folder):
    assert check_fit(base, architecture="sd3", prediction_type="flow_prediction") is None
    assert "loss.min_snr_gamma=5.0: a rectified flow weighs" in refusal(base, loss=LossOptions(min_snr_gamma=5.0))
    with pytest.raises(ValueError, match="a rectified flow weighs its timesteps"):
        FineTune(str(base), loss=LossOptions(min_snr_gamma=5.0))
    assert "predicts flow_prediction, this configuration is for v_prediction" in refusal(
        base, prediction_type="v_prediction"
    )
    assert "is Stable Diffusion 3, this configuration is for Stable Diffusion XL" in refusal(base, architecture="sdxl")
    message = refusal(base, images=ImageFolder(str(scene_folder), resolution=30))
    assert "resolution=30 is not a multiple of 4, the model's downsampling factor" in message
    scheduler = base / "scheduler" / "scheduler_config.json"
    whole = scheduler.read_text()
    scheduler.write_text(json.dumps(json.loads(whole) | {"_class_name": "DDIMScheduler"}))
    assert "scheduler 'DDIMScheduler' of a flow model; expected FlowMatchEulerDiscreteScheduler" in refusal(base)
    scheduler.write_text(whole)
