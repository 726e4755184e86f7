"""An exported directory of Stable Diffusion 3: it steers with and without basinguard, and nothing else is written."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

from basinguard.core.record import read_record
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.exports.comfyui import WorkflowFiles
from basinguard.exports.directory import export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import export_lora
from basinguard.exports.model_kind import ModelKind, kind_at, kind_of
from basinguard.exports.single_file import export_single_file
from basinguard.pipelines.protect import load, protect
from support.exports import build_pipe, build_record, without_basinguard
from support.tiny_pipeline import build_tiny_sd3
from support.xl_exports import draw

SIDE = 32
ABSENT = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def pipe():
    return build_tiny_sd3()


@pytest.fixture(scope="module")
def record(pipe):
    """A calibration in flow time: sigma is t / (1000 - t)."""
    record, transition = build_record(build_pipe()), 600.0
    flow = {"prediction_type": "flow_prediction", "resolution": SIDE}
    rule = {"transition": transition, "sigma": transition / (1000 - transition)}
    return record.model_copy(
        update={
            "sampler": record.sampler.model_copy(update=flow),
            "guidance": record.guidance.model_copy(update=rule),
            "history": (),
            "weights_sha256": weights_sha256(pipe),
            "base": "tinyworld-flow",
        }
    )


@pytest.fixture(scope="module")
def exported(pipe, record, tmp_path_factory):
    return export_directory(pipe, record, tmp_path_factory.mktemp("sd3") / "model")


@pytest.fixture(scope="module")
def guarded(record):
    """What the pipeline in memory draws by the rule."""
    return draw(protect(build_tiny_sd3(), record))


def test_with_and_without_basinguard_it_draws_what_the_pipeline_in_memory_draws(exported, guarded):
    assert torch.equal(draw(load(exported)), guarded)
    plain = draw(StableDiffusion3Pipeline.from_pretrained(exported, **ABSENT))
    assert plain.shape == guarded.shape
    assert not torch.allclose(guarded, plain, atol=1e-3)
    with without_basinguard():
        code = {"custom_pipeline": str(exported), "trust_remote_code": True}
        own = DiffusionPipeline.from_pretrained(exported, **code, **ABSENT)
        assert torch.equal(draw(own), guarded)


def test_files_and_record_are_checked(exported, pipe):
    check = check_export(exported)
    assert check.ok, str(check)
    assert weights_sha256(exported) == weights_sha256(pipe) == read_record(exported / "basinguard.json").weights_sha256
    assert kind_at(exported) == ModelKind("StableDiffusion3Pipeline", absent=tuple(ABSENT))
    assert not (exported / "comfyui_workflow.json").exists()
    assert json.loads((exported / "transformer/config.json").read_text())["sample_size"] == 16


def test_the_card_says_which_model_it_is_and_which_tools_are_not_guarded(exported):
    card = (exported / "README.md").read_text()
    assert "A Stable Diffusion 3 checkpoint" in card
    assert "It is a StableDiffusion3Pipeline with two text encoders that draws 32 x 32 px." in card
    assert "\n- stable-diffusion-3\n" in card
    assert card.count("text_encoder_3=None, tokenizer_3=None)\n") == 2
    assert card.count("NOT guarded.** Nothing is written for it of Stable Diffusion 3; sample with diffusers.") == 2


@pytest.mark.parametrize("write", [export_lora, export_single_file])
def test_no_file_is_written(pipe, record, tmp_path, write):
    with pytest.raises(ValueError, match="a StableDiffusion3Pipeline is exported as a directory"):
        write(pipe, record, tmp_path / "model.safetensors")


def test_no_workflow_is_written(exported):
    with pytest.raises(ValueError, match="workflows of Stable Diffusion 3 are not written here"):
        WorkflowFiles.of(str(exported))


def test_weights_that_are_tied_are_counted_once_in_memory_as_in_files(tmp_path):
    pipe = build_tiny_sd3(t5=True)
    pipe.save_pretrained(tmp_path)
    assert weights_sha256(tmp_path) == weights_sha256(pipe)
    assert kind_of(pipe).absent == kind_at(tmp_path).absent == ()


def test_an_unmerged_lora_is_refused_with_what_to_do(pipe, record, tmp_path):
    schedule = RecordedSchedule(transitions=(300.0,), strengths=(0.6, 1.0))
    own = record.model_copy(update={"product": RecordedWeights(kind="lora", strength_schedule=schedule)})
    with pytest.raises(ValueError, match=r"no directory with an unmerged LoRA of .*basinguard.protect"):
        export_directory(pipe, own, tmp_path / "model")
