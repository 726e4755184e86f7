"""An exported directory of Stable Diffusion XL: every loader opens it, and it steers with and without basinguard."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from basinguard.core.record import read_record
from basinguard.exports.comfyui import WorkflowFiles, comfyui_workflow
from basinguard.exports.directory import check_exportable, export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.merge import merged
from basinguard.exports.model_kind import ModelKind, kind_at, kind_of
from basinguard.pipelines.protect import load, protect
from support.exports import build_pipe, without_basinguard
from support.xl_exports import build_xl, draw, xl_record


@pytest.fixture(scope="module")
def pipe():
    return build_xl()


@pytest.fixture(scope="module")
def record(pipe):
    return xl_record(pipe)


@pytest.fixture(scope="module")
def exported(pipe, record, tmp_path_factory):
    return export_directory(pipe, record, tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture(scope="module")
def guarded(record):
    """What the pipeline in memory draws by the rule."""
    return draw(protect(build_xl(), record))


def test_every_way_to_load_it_draws_what_the_pipeline_in_memory_draws(pipe, exported, guarded):
    assert torch.equal(draw(load(exported)), guarded)
    plain = draw(StableDiffusionXLPipeline.from_pretrained(exported, add_watermarker=False))
    assert torch.equal(plain, draw(pipe))
    assert not torch.allclose(guarded, plain, atol=1e-2)


def test_without_basinguard_its_own_code_steers(exported, guarded):
    with without_basinguard():
        own = DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported), trust_remote_code=True)
        assert torch.equal(draw(own), guarded)
    assert isinstance(own, StableDiffusionXLPipeline)
    assert kind_of(own).xl


def test_files_records_and_code_are_checked(exported, pipe, record, tmp_path):
    check = check_export(exported)
    assert check.ok, str(check)
    assert not check.notes
    assert any("its code is that of this version" in text for text in check.verified)
    assert weights_sha256(exported) == weights_sha256(pipe) == read_record(exported / "basinguard.json").weights_sha256
    assert inspect_file(exported).record == record
    assert json.loads((exported / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    assert kind_at(exported) == ModelKind("StableDiffusionXLPipeline", zero_empty=True)


def test_older_clients_find_both_encoders_and_both_vocabularies(exported, pipe):
    for number in ("", "_2"):
        assert (exported / f"tokenizer{number}" / "merges.txt").read_text().startswith("#version: 0.2\n")
        names = load_file(exported / f"text_encoder{number}" / "model.safetensors")
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
    assert "text_projection.weight" in names


def test_the_card_says_which_model_it_is(exported):
    card = (exported / "README.md").read_text()
    assert "A Stable Diffusion XL checkpoint fine-tuned from stabilityai/stable-diffusion-xl-base-1.0" in card
    assert "It is a StableDiffusionXLPipeline with two text encoders that draws 32 x 32 px." in card
    assert "from diffusers import StableDiffusionXLPipeline\n" in card
    assert "\n- stable-diffusion-xl\n" in card
    assert "license: openrail++" in card
    assert "Derived from Stable Diffusion XL 1.0: the use restrictions" in card
    assert "**5. A1111 / Forge: NOT guarded.** prompt editing cannot follow a rule of Stable Diffusion XL" in card
    assert "`ConditioningZeroOut`" in card


def test_the_workflow_tells_xl_the_calibrated_size_and_zeros(exported, record):
    flow = json.loads((exported / "comfyui_workflow.json").read_text())
    sizes = {"width": 32, "height": 32, "crop_w": 0, "crop_h": 0, "target_width": 32, "target_height": 32}
    assert flow["prompt"]["class_type"] == "CLIPTextEncodeSDXL"
    assert flow["prompt"]["inputs"] == {**sizes, "clip": ["load", 1], "text_g": "your prompt", "text_l": "your prompt"}
    assert flow["empty"]["class_type"] == "ConditioningZeroOut"
    assert flow["nothing"]["inputs"]["text_l"] == flow["nothing"]["inputs"]["text_g"] == ""
    assert flow["before"]["inputs"]["positive"] == ["empty", 0], "a negative scale swaps the prompts"
    assert flow["model"]["inputs"]["sampling"] == "eps"
    links = [v for node in flow.values() for v in node["inputs"].values() if isinstance(v, list)]
    assert all(name in flow for name, _ in links)
    text = comfyui_workflow(record, files=WorkflowFiles(kind=ModelKind("StableDiffusionXLPipeline", zero_empty=False)))
    assert text["empty"]["class_type"] == "CLIPTextEncodeSDXL", "an empty prompt that is no zeros"
    assert WorkflowFiles.of(str(exported)).kind.zero_empty


def test_merging_keeps_what_the_pipeline_does_with_an_empty_prompt():
    pipe = copy.copy(build_xl())
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert merged(pipe).config.force_zeros_for_empty_prompt is False
    assert merged(pipe).watermark is None
    assert kind_of(pipe) == ModelKind("StableDiffusionXLPipeline", zero_empty=False)
    assert kind_of(build_pipe()) == ModelKind()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            '{"_class_name": "FluxPipeline"}',
            r"a 'FluxPipeline'; what is exported here is one of",
        ),
        ("[]", "not the index of a diffusers pipeline"),
        ("{", "not the index of a diffusers pipeline"),
    ],
)
def test_a_workflow_for_another_model_is_refused_in_one_line(tmp_path, index, message):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=message) as refusal:
        WorkflowFiles.of(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_drawn_from_is_refused_in_one_line(pipe):
    without = copy.copy(pipe)
    without.text_encoder_2 = None
    with pytest.raises(ValueError, match="the pipeline has no text_encoder_2"):
        check_exportable(without)
    with pytest.raises(TypeError, match=r"cannot export a DiffusionPipeline; expected .* or StableDiffusionXLPipeline"):
        check_exportable(object.__new__(DiffusionPipeline))
