"""A strength that follows the timestep, from `protect` to what ships: base and LoRA apart, and nothing merged."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from basinguard.core.record import Record, read_record
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.core.safetensors_header import read_header
from basinguard.diffusion.sampling import EMPTY
from basinguard.exports.directory import export_directory
from basinguard.exports.integrity import check_export
from basinguard.exports.layout import LORA_FILE, NOTICE_KEY, RECORD_FILE
from basinguard.exports.lora import default_strength, lora_layers
from basinguard.exports.lora_formats import lora_sha256
from basinguard.exports.merge import merged, without_adapters
from basinguard.exports.single_file import export_single_file
from basinguard.guidance.core import from_record
from basinguard.guidance.strength import StrengthSchedule, scheduled
from basinguard.pipelines.interpolation import Blend, BlendedWeights
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.lora_files import load_lora
from basinguard.pipelines.protect import last_trace, load, protect, unprotect
from support.exports import build_pipe, build_record, with_lora
from support.tiny_pipeline import build_tiny_z_image

TRANSITIONS, STRENGTHS = (800.0, 300.0), (0.0, 0.5, 1.0)
SCHEDULE = StrengthSchedule(TRANSITIONS, STRENGTHS)
LORA = RecordedWeights(kind="lora", strength_schedule=RecordedSchedule(transitions=TRANSITIONS, strengths=STRENGTHS))
CALL = {"prompt": "a", "guidance_scale": 4.0, "num_inference_steps": 8, "output_type": "latent"}


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL, generator=torch.Generator().manual_seed(3)).images


@pytest.fixture(scope="module")
def pipe():
    return with_lora()


@pytest.fixture(scope="module")
def record(pipe) -> Record:
    return build_record(merged(pipe)).model_copy(update={"product": LORA, "history": ()})


@pytest.fixture(scope="module")
def samples(pipe, record):
    image = draw(protect(pipe, record))
    unprotect(pipe)
    return image


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pipe, record):
    return export_directory(pipe, record, tmp_path_factory.mktemp("runs") / "model")


def switched_by_hand(pipe):
    """Sets the adapter's weight before every call of the UNet, as a person would; returns what undoes it."""

    def switch(module, args, kwargs):
        timestep = float(args[1])
        share = STRENGTHS[0] if timestep > 800 else STRENGTHS[1] if timestep > 300 else STRENGTHS[2]
        module.set_adapters(["default"], weights=[share])

    return pipe.unet.register_forward_pre_hook(switch, with_kwargs=True)


def test_a_record_samples_as_its_weights_switched_by_hand(pipe, record, samples):
    hook = switched_by_hand(pipe)
    by_hand = draw(protect(pipe, from_record(record.model_dump())))
    hook.remove()
    unprotect(pipe)
    pipe.unet.set_adapters(["default"], weights=[1.0])
    assert torch.equal(samples, by_hand)
    whole = draw(protect(pipe, from_record(record.model_dump())))
    unprotect(pipe)
    assert not torch.allclose(samples, whole, atol=1e-2)


def test_the_rule_works_beside_it(pipe, record):
    draw(protect(pipe, record))
    assert [float(each.scale) for each in last_trace(pipe)] == [-2.0] * 4 + [4.0] * 4
    unprotect(pipe)


def test_base_and_lora_lie_apart(exported, pipe, record, samples):
    stored = read_record(exported / RECORD_FILE)
    assert stored.product.strength_schedule == record.product.strength_schedule
    base = draw(StableDiffusionPipeline.from_pretrained(exported))
    assert torch.equal(base, draw(without_adapters(pipe)))
    assert torch.equal(draw(load(exported)), samples)


def test_without_basinguard_it_samples_the_same(exported, samples):
    alone = DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported), trust_remote_code=True)
    with pytest.raises(ValueError, match="load the LoRA onto it \\(load_lora_weights\\)"):
        draw(alone)
    alone.load_lora_weights(exported)
    assert torch.allclose(draw(alone), samples, atol=1e-5)


def test_an_export_says_what_it_is(exported):
    check = check_export(exported)
    assert check.ok, check
    assert {"the record belongs to these weights"} < set(check.verified)
    card = (exported / "README.md").read_text()
    assert "follows the timestep: 0 at high noise, 0.5 from 800 down, 1 from 300 down" in card
    assert "Safe by its rule and its strengths by timestep." in card
    assert "pipe.load_lora_weights(here)" in card
    assert "there is no rule to apply" not in card
    assert f"`basinguard audit model --lora model/{LORA_FILE} --data DIR --attack quick`" in card
    scheduler = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert NOTICE_KEY in scheduler
    flow = json.loads((exported / "comfyui_workflow.json").read_text())
    assert flow["load"]["inputs"] == {"model_path": "model"}
    assert flow["lora"]["inputs"]["lora_name"] == "model.safetensors"
    assert "in its folder [`comfyui`](comfyui) into `models/loras`" in card


def test_comfyui_gets_the_same_lora_in_its_own_format(exported, pipe):
    stored = exported / "comfyui" / "model.safetensors"
    assert check_export(stored).ok
    assert all(name.endswith((".lora_down.weight", ".lora_up.weight", ".alpha")) for name in read_header(stored).shapes)
    again = build_pipe()
    load_lora(again, stored)
    assert lora_sha256(lora_layers(again)) == lora_sha256(lora_layers(pipe))


def test_a_schedule_that_no_workflow_follows_is_exported_without(pipe, record, tmp_path):
    close = RecordedSchedule(transitions=(490.0, 480.0), strengths=STRENGTHS)
    product = LORA.model_copy(update={"strength_schedule": close})
    export = export_directory(pipe, record.model_copy(update={"product": product}), tmp_path / "model")
    assert not (export / "comfyui_workflow.json").exists()
    assert "**4. ComfyUI: NOT guarded.** None of 20 steps of simple lies between" in (export / "README.md").read_text()


def test_a_changed_lora_is_noticed(exported, pipe, record, tmp_path):
    copy = export_directory(pipe, record, tmp_path / "copy")
    (copy / LORA_FILE).unlink()
    problems = check_export(copy).problems
    assert any(LORA_FILE in problem for problem in problems)
    assert f"the record is of a LoRA in {LORA_FILE}, which is not here" in problems
    (copy / "basinguard_strength.py").write_text("# changed")
    assert "basinguard_strength.py are not those of this version" in check_export(copy).notes[0]
    with pytest.raises(ValueError, match="needs an unmerged LoRA"):
        load(copy)


@pytest.mark.parametrize("ways", [protect, lambda pipe, record: export_directory(pipe, record, "never-written")])
def test_a_merged_checkpoint_is_refused(ways, pipe, record):
    with pytest.raises(ValueError, match=r"needs an unmerged LoRA.*give the base model and load the LoRA onto it"):
        ways(merged(pipe), record)


def test_one_file_is_refused(pipe, record, tmp_path):
    with pytest.raises(ValueError, match="one file cannot hold a strength by timestep"):
        export_single_file(merged(pipe), record, tmp_path / "model.safetensors")


def test_the_lora_of_another_model_is_refused(record, tmp_path):
    other = with_lora(rank=3)
    with pytest.raises(ValueError, match="the record was made for weights"):
        export_directory(other, record, tmp_path / "model")


def test_timesteps_that_cannot_be_followed_are_refused(record):
    with pytest.raises(ValueError, match="cannot follow the timesteps of a ZImagePipeline"):
        protect(build_tiny_z_image(), record)


def test_a_lora_file_holds_the_whole_lora(record):
    assert default_strength(record) == 1.0


def test_a_pipeline_without_a_schedule_keeps_its_two_files(tmp_path):
    pipe = build_pipe()
    out = export_directory(pipe, build_record(pipe).model_copy(update={"history": ()}), tmp_path / "model")
    assert sorted(path.name for path in out.glob("*.py")) == ["basinguard_guidance.py", "pipeline.py"]


def test_blended_weights_follow_the_timestep_as_the_lora_does(pipe):
    """Rows of one batch may have other timesteps, as in a probe's branches."""
    whole, base = merged(pipe), without_adapters(pipe)
    x, prompt = torch.randn(3, 4, 8, 8), torch.tensor([0, 0, EMPTY])
    timesteps = torch.tensor([900.0, 500.0, 300.0])
    live, before = LatentModel(pipe).denoiser(["a"]), {k: v.clone() for k, v in whole.unet.state_dict().items()}
    with torch.no_grad():
        with scheduled(pipe.unet, SCHEDULE):
            apart = [live(x[k : k + 1], timesteps[k : k + 1], prompt[k : k + 1]) for k in range(3)]
        unscheduled = live(x, timesteps, prompt)
        with BlendedWeights(Blend(whole, base)).scheduled(None, SCHEDULE) as opened:
            blended = opened.model.denoiser(["a"])(x, timesteps, prompt)
    torch.testing.assert_close(blended, torch.cat(apart), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(blended, unscheduled, atol=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in whole.unet.state_dict().items())
