"""Stable Diffusion XL in one file of its authors' layout: diffusers reads back every weight, and so do we."""

import copy

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from basinguard.core.safetensors_header import read_header
from basinguard.exports.integrity import check_export
from basinguard.exports.model_kind import kind_at
from basinguard.exports.original_layout import name_in
from basinguard.exports.single_file import export_single_file
from basinguard.pipelines.original_weights import load_original
from support.xl_exports import build_small_xl, build_xl, draw, xl_record

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def small():
    return build_small_xl()


@pytest.fixture(scope="module")
def small_record(small):
    return xl_record(small)


@pytest.fixture(scope="module")
def written(small, small_record, tmp_path_factory):
    return export_single_file(
        small, small_record, tmp_path_factory.mktemp("xl") / "model.safetensors", precision="float32"
    )


@pytest.fixture(scope="module")
def theirs(small, written, tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "model"
    small.save_pretrained(config)
    for weights in config.rglob("*.safetensors"):
        weights.unlink()
    return StableDiffusionXLPipeline.from_single_file(
        str(written), config=str(config), local_files_only=True, add_watermarker=False
    )


def weights(pipe, parts=PARTS):
    return {
        f"{part}.{name.removeprefix('text_model.')}": value
        for part in parts
        for name, value in getattr(pipe, part).state_dict().items()
    }


def same(ours, others):
    assert ours.keys() == others.keys()
    assert [name for name in ours if not torch.equal(ours[name], others[name])] == []


def test_diffusers_reads_back_every_weight_and_draws_the_same(small, theirs):
    same(weights(small), weights(theirs))
    assert torch.equal(draw(theirs), draw(small))


def test_our_reader_of_trainers_files_puts_back_every_weight(small, written):
    other = copy.deepcopy(small)
    for part in ("unet", *PARTS[2:]):
        for weight in getattr(other, part).parameters():
            weight.data.add_(1)
    load_original(other, written)
    same(weights(small, ("unet", *PARTS[2:])), weights(other, ("unet", *PARTS[2:])))


def test_no_tensor_has_a_name_that_the_authors_do_not_use(written):
    """The four prefixes of a file of XL; the projection is a matrix of hidden by projected numbers, as OpenCLIP's."""
    stored = load_file(written)
    prefixes = {
        "model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.transformer.text_model.",
        "conditioner.embedders.1.model.",
    }  # fmt: skip
    assert {next((p for p in prefixes if name.startswith(p)), name) for name in stored} == prefixes
    assert stored["conditioner.embedders.1.model.text_projection"].shape == (1280, 24)
    for name in ("label_emb.0.0", "input_blocks.8.1.transformer_blocks.1.attn2.to_k", "output_blocks.2.2.conv"):
        assert f"model.diffusion_model.{name}.weight" in stored


@pytest.mark.parametrize(
    ("ours", "original"),
    [  # places in the published UNet of XL, as in sd_xl_base_1.0.safetensors
        ("down_blocks.1.attentions.0.proj_in.weight", "input_blocks.4.1.proj_in.weight"),
        ("down_blocks.2.attentions.1.norm.weight", "input_blocks.8.1.norm.weight"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.2.conv.bias"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        ("up_blocks.2.resnets.2.conv2.weight", "output_blocks.8.0.out_layers.3.weight"),
        ("add_embedding.linear_1.weight", "label_emb.0.0.weight"),
    ],
)
def test_names_of_the_unet(small, ours, original):
    assert ours in small.unet.state_dict()
    assert name_in(small.unet, ours) == original


def test_the_file_says_what_it_is(written, small_record):
    assert check_export(written).ok, str(check_export(written))
    assert kind_at(written).xl
    header = read_header(written).metadata
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header["modelspec.resolution"] == "128x128"
    assert header["modelspec.prediction_type"] == "epsilon"
    assert header["modelspec.license"] == "openrail++"
    assert "A1111" not in header["modelspec.usage_hint"], "prompt editing cannot follow a rule of XL"
    assert "ComfyUI: KSamplerAdvanced" in header["modelspec.usage_hint"]


def test_another_width_of_text_is_refused(tmp_path):
    pipe = build_xl()
    with pytest.raises(ValueError, match=r"StableDiffusionXLPipeline whose UNet attends to text states 80 wide.*XL's"):
        export_single_file(pipe, xl_record(pipe), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
