"""One file in the original layout: diffusers reads back what was written, and so does our own loader."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from basinguard.core.safetensors_header import read_header
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.original_layout import original_state
from basinguard.exports.single_file import export_single_file
from basinguard.pipelines import loading
from basinguard.pipelines.loading import load_pipeline
from support.exports import build_record
from support.original_layout import build_small_sd2

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def small():
    return build_small_sd2()


@pytest.fixture(scope="module")
def small_dir(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("small") / "model"
    small.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def small_record(small):
    return build_record(small)


def weights(pipe):
    return {
        f"{part}.{name.removeprefix('text_model.')}": value
        for part in PARTS
        for name, value in getattr(pipe, part).state_dict().items()
    }


def text_weights(pipe):
    return {name.removeprefix("text_model."): value for name, value in pipe.text_encoder.state_dict().items()}


def same(ours, theirs, dtype=torch.float32):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name].to(dtype), theirs[name].to(dtype))] == []


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.long), "float16"])
def test_diffusers_and_our_loader_read_back_every_weight(
    small, small_dir, small_record, tmp_path, monkeypatch, precision
):
    path = export_single_file(small, small_record, tmp_path / "model.safetensors", precision=precision)
    theirs = StableDiffusionPipeline.from_single_file(str(path), config=str(small_dir), local_files_only=True)
    same(weights(small), weights(theirs), getattr(torch, precision))
    monkeypatch.setattr(loading, "SD21", small_dir)
    ours = load_pipeline(path)
    same(weights(small), weights(ours), getattr(torch, precision))
    assert ours.scheduler.config.prediction_type == "v_prediction", "the header says it, so it is not measured"
    stored = {str(value.dtype) for value in load_file(path).values()}
    assert stored == {f"torch.{precision}"}


def test_what_diffusers_draws_from_the_file_is_what_the_pipeline_draws(small, small_dir, small_record, tmp_path):
    path = export_single_file(small, small_record, tmp_path / "model.safetensors", precision="float32")
    theirs = StableDiffusionPipeline.from_single_file(str(path), config=str(small_dir), local_files_only=True)
    drawn = [
        pipe("a ball", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        for pipe in (small, theirs)
    ]
    assert abs(drawn[0] - drawn[1]).max() == 0


def test_older_diffusers_find_the_projection_that_they_read_a_width_from(small, small_record, tmp_path):
    """convert_open_clip_checkpoint of diffusers 0.31 to 0.34: queries are the first `text_projection.shape[0]` rows."""
    stored = load_file(export_single_file(small, small_record, tmp_path / "model.safetensors"))
    width = stored["cond_stage_model.model.text_projection"].shape[0]
    query = stored["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"][:width].float()
    assert torch.equal(query, text_weights(small)["encoder.layers.0.self_attn.q_proj.weight"].half().float())


def test_stable_diffusion_1_keeps_clips_own_names(small_dir, tmp_path):
    pipe = build_small_sd2(width=768)
    pipe.save_pretrained(tmp_path / "config")
    path = export_single_file(pipe, build_record(pipe), tmp_path / "one.safetensors", precision="float32")
    assert any(name.startswith("cond_stage_model.transformer.text_model.") for name in read_header(path).shapes)
    theirs = StableDiffusionPipeline.from_single_file(str(path), config=str(tmp_path / "config"), local_files_only=True)
    same(weights(pipe), weights(theirs))


def test_the_header_carries_the_record_and_the_sums(small, small_record, tmp_path):
    path = export_single_file(small, small_record, tmp_path / "cats.safetensors")
    inspected = inspect_file(path)
    assert inspected.record.guidance == small_record.guidance
    header = inspected.header
    assert header["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert (header["modelspec.prediction_type"], header["basinguard.precision"]) == ("v", "float16")
    assert check_export(path).ok
    tensors = load_file(path)
    tensors["model.diffusion_model.out.2.bias"][0] += 1
    save_file(tensors, path, metadata=header)
    assert "the tensors does not have the sum" in check_export(path).problems[0]


def test_what_no_loader_of_such_files_could_open_is_refused(small, small_record, pipe, record, tmp_path):
    with pytest.raises(ValueError, match=r"text states 16 wide.*export a directory instead"):
        export_single_file(pipe, record, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"\*\.safetensors, float16 or float32"):
        export_single_file(small, small_record, tmp_path / "model.ckpt")
    other = small.scheduler.from_config(small.scheduler.config, beta_schedule="linear")
    changed = StableDiffusionPipeline(**{**small.components, "scheduler": other}, requires_safety_checker=False)
    with pytest.raises(ValueError, match="noise schedule is not Stable Diffusion's"):
        export_single_file(changed, small_record, tmp_path / "model.safetensors")
    export_single_file(small, small_record, tmp_path / "model.safetensors")
    with pytest.raises(FileExistsError):
        export_single_file(small, small_record, tmp_path / "model.safetensors")


def test_weights_that_half_precision_cannot_hold_are_refused(small, small_record, tmp_path):
    bias = small.unet.conv_out.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[0] = 1e6
    try:
        unnamed = small_record.model_copy(update={"weights_sha256": ""})
        with pytest.raises(ValueError, match=r"out\.2\.bias' is not finite in float16"):
            export_single_file(small, unnamed, tmp_path / "model.safetensors")
    finally:
        bias.data.copy_(before)


def test_stable_diffusion_2s_own_text_encoder_has_the_names_that_clients_look_for():
    config = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    small = build_small_sd2()
    small.text_encoder = CLIPTextModel(config)
    names = original_state(small, second=True)
    block = "cond_stage_model.model.transformer.resblocks.1."
    ends = ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "ln_1.weight", "ln_2.bias")
    assert {f"{block}{end}" for end in (*ends, "mlp.c_fc.weight", "mlp.c_proj.bias")} <= names.keys()
    assert names[f"{block}attn.in_proj_weight"].shape == (48, 16)
    assert {"cond_stage_model.model.positional_embedding", "cond_stage_model.model.token_embedding.weight"} <= (
        names.keys()
    )
