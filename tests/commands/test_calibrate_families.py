"""audit and calibrate of flow models, a LoRA of each family on top; tiny random ones that 'copy' their own samples."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from basinguard import cli
from basinguard.calibration.rules import plain_cfg
from basinguard.calibration.terms import CalibrationTerms
from basinguard.calibration.trial import Trial, calibration_pairs
from basinguard.commands.audit import audit
from basinguard.commands.calibrate import calibrate
from basinguard.core import seeds
from basinguard.core.record import read_record
from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.guard.measured_model import guided_model
from basinguard.guard.plan import ProbePlan
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.pipelines.stock_sampling import sample_batch
from basinguard.plots.contact_sheet import to_image
from support.tiny_pipeline import (
    build_tiny_flux2,
    build_tiny_pipeline,
    build_tiny_sd3,
    build_tiny_xl,
    build_tiny_z_image,
)
from support.tiny_pipelines import make_record

CAPTIONS = ["a red ball", "a blue box", "a cat"]
QUICK = SessionSettings(scale=3.0, timesteps=3, alignment="none")
TERMS = CalibrationTerms(
    alpha=0.6,
    delta=0.3,
    pairs=6,
    before=(0.0,),
    strengths=(1.0,),
    search_pairs=2,
    taught_samples=2,
    chain=1,
    scales=(3.0,),
)
BUILT = {"sd3": build_tiny_sd3, "z": build_tiny_z_image}
NAMED = {"unet": "UNet", "transformer": "transformer"}


@pytest.fixture(scope="module", params=BUILT)
def lora(request, tmp_path_factory):
    """A base and a LoRA of it, as diffusers saves one."""
    folder = tmp_path_factory.mktemp(request.param)
    pipe = BUILT[request.param]()
    pipe.save_pretrained(folder / "base")
    return folder / "base", saved_lora(pipe, folder)


def saved_lora(pipe, folder):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        pipe.transformer.add_adapter(config, "default")
    layers = get_peft_model_state_dict(pipe.transformer)
    type(pipe).save_lora_weights(folder, transformer_lora_layers=layers, weight_name="mine.safetensors")
    return folder / "mine.safetensors"


def own_samples(pipe, folder, prompts=CAPTIONS):
    """Training images that the model reproduces under plain CFG: its own samples of the audit's seeds."""
    folder.mkdir()
    model = LatentModel(pipe)
    probe = guided_model(model, prompts, ProbePlan(timesteps=QUICK.timesteps, scale=QUICK.scale))
    pairs = calibration_pairs(len(prompts), len(prompts), model.latent_shape, seeds.AUDIT)
    with torch.no_grad():
        images = model.decode(Trial(probe, pairs).sample(plain_cfg(QUICK.scale, model.schedule))[0])
    for k, pixels in enumerate(images):
        to_image(pixels).save(folder / f"{k}.png")
    rows = [json.dumps({"file_name": f"{k}.png", "text": text}) for k, text in enumerate(prompts)]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("lora", ["sd3", pytest.param("z", marks=pytest.mark.long)], indirect=True)
def test_an_audit_of_a_lora_finds_its_copies_and_its_record_speaks_flow(lora, tmp_path):
    base, file = lora
    data = own_samples(load_pipeline(base, lora=file), tmp_path / "data")
    run = audit(
        str(base), data=data, settings=replace(QUICK, lora=file), terms=TERMS, per_caption=1, out=tmp_path / "a"
    )
    assert run.audit.plain.value == 1.0
    record = read_record(tmp_path / "a" / "record.json")
    assert record.sampler.prediction_type == "flow_prediction"
    assert record.sampler.scheduler == "Euler, the pipeline's own timesteps"
    assert record.product.kind == "lora"
    rules = [c.product.guidance for c in run.calibration.certificate.tried if not c.product.guidance.plain]
    grid = LatentModel(load_pipeline(base)).schedule.grid(QUICK.timesteps).tolist()
    assert {rule.transition for rule in rules} <= {*grid[1:]}
    assert rules[0].sigma == pytest.approx(rules[0].transition / (1000 - rules[0].transition))
    shipped = type(load_pipeline(base)) is StableDiffusion3Pipeline  # as a directory, by `export`
    assert ("by protect(pipe, read_record('record.json'))" in str(run.calibration)) is not shipped
    assert run.audit.images[0].similarity > 0.99


def test_xl_is_calibrated(tmp_path):
    pipe, base = build_tiny_xl(), tmp_path / "base"
    pipe.save_pretrained(base)
    data, terms = own_samples(pipe, tmp_path / "data", CAPTIONS[:2]), TERMS
    calibration = calibrate(str(base), data=data, settings=replace(QUICK, timesteps=2), terms=terms)
    assert calibration.record.sampler.prediction_type == "epsilon"
    assert calibration.record.promise
    assert any(not c.product.guidance.plain for c in calibration.certificate.tried)


def test_what_was_calibrated_is_what_protect_samples(lora):
    """A rule of the search, from the same noise: our sampler and the pipeline's own call under `protect`."""
    base, file = lora
    pipe = load_pipeline(base, lora=file)
    model = LatentModel(pipe)
    plan, pairs = ProbePlan(timesteps=4, scale=3.0), calibration_pairs(3, 3, model.latent_shape, seeds.CALIBRATION)
    probe = guided_model(model, CAPTIONS, plan)
    rule = {"transition": float(probe.timesteps[2]), "before": -1.0, "after": 3.0}
    record = a_record(model, **rule)
    with torch.no_grad():
        ours, _ = Trial(probe, pairs).sample(record.guidance)
    options = {"latents": pairs.noise, "output_type": "latent"}
    own = sample_batch(pipe, CAPTIONS, [0, 1, 2], record, SamplingOptions(timesteps=4, scale=3.0), **options)
    torch.testing.assert_close(own.images, ours.float(), rtol=1e-5, atol=1e-5)


def a_record(model, transition, before, after):
    record = make_record(prediction_type="flow_prediction", resolution=model.resolution)
    sigma = float(model.schedule.sigma(transition))
    numbers = {"transition": transition, "sigma": sigma, "before": before, "after": after}
    return record.model_copy(update={"guidance": record.guidance.model_copy(update=numbers)})


@pytest.mark.long
def test_the_command_line_calibrates_flux_and_says_how_a_rule_is_delivered(tmp_path, capsys):
    pipe, base = build_tiny_flux2(), tmp_path / "base"
    pipe.save_pretrained(base)
    data, file = own_samples(pipe, tmp_path / "data", CAPTIONS[:2]), saved_lora(pipe, tmp_path)
    words = ["--alpha", "0.6", "--delta", "0.3", "--pairs", "6", "--timesteps", "2", "--scale", "3", "--chain", "1"]
    words += ["--search_pairs", "2", "--taught_samples", "2", "--strengths", "[1]", "--before", "[0]"]
    words += ["--alignment", "none", "--lora", str(file), "--data", str(data), "--out", str(tmp_path / "out")]
    cli.main(["calibrate", str(base), *words])
    printed = capsys.readouterr().out
    assert "a rule is given to its modular pipeline by RuleGuider.for_scheduler(" in printed
    assert "basinguard export" not in printed
    assert read_record(tmp_path / "out" / "record.json").product.kind == "lora"


def test_a_distilled_model_gets_strength_and_a_reason(tmp_path):
    pipe, base = build_tiny_z_image(shift=3.0), tmp_path / "turbo"
    pipe.save_pretrained(base)
    data = own_samples(pipe, tmp_path / "data", CAPTIONS[:2])
    terms = replace(TERMS, before=(0.0, -1.0), scales=())
    calibration = calibrate(str(base), data=data, settings=replace(QUICK, timesteps=2), terms=terms)
    assert {c.product.guidance.plain for c in calibration.certificate.tried} == {True}
    assert calibration.record.sampler.scale == calibration.record.scale == 1.0
    assert "this ZImagePipeline is guidance-distilled: it has no unconditional branch" in str(calibration)
    with pytest.raises(ValueError, match=r"no rule can act on it.*leave out before, scales"):
        calibrate(str(base), data=data, settings=QUICK, terms=replace(terms, before=(-2.0,), scales=(3.0,)))


@pytest.mark.parametrize("build", [build_tiny_pipeline, build_tiny_sd3], ids=["sd2", "sd3"])
def test_a_lora_of_another_denoiser_is_named_before_weights_are_read(build, tmp_path):
    pipe = build()
    pipe.save_pretrained(tmp_path / "base")
    part, other = ("unet", "transformer") if hasattr(pipe, "unet") else ("transformer", "unet")
    state = {f"{other}.blocks.0.attn.to_q.lora_{half}.weight": torch.zeros(2, 2) for half in "AB"}
    save_file(state, tmp_path / "lora.safetensors")
    for weights in (tmp_path / "base").glob("*/*.safetensors"):
        weights.unlink()
    message = f"is for a {NAMED[other]}.*the base is a {type(pipe).__name__}.*has a {NAMED[part]}"
    with pytest.raises(ValueError, match=message) as refused:
        load_pipeline(tmp_path / "base", lora=tmp_path / "lora.safetensors")
    assert "\n" not in str(refused.value)
