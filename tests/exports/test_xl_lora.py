"""A LoRA of Stable Diffusion XL in each format: diffusers' own loader and ours restore every layer of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from basinguard.exports.inspect import describe_file, inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import export_lora, lora_layers
from basinguard.exports.lora_formats import layers_in, lora_sha256, xl_names
from basinguard.exports.merge import merged
from basinguard.exports.model_kind import kind_of
from basinguard.pipelines.lora_files import load_lora
from support.exports import build_pipe
from support.xl_exports import build_xl, draw, xl_record, xl_with_lora

FORMATS = ("kohya", "diffusers", "diffusers-folded")


@pytest.fixture(scope="module")
def tuned():
    return xl_with_lora()


@pytest.fixture(scope="module")
def record(tuned):
    return xl_record(merged(tuned))


@pytest.fixture(scope="module")
def files(tuned, record, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return {
        kind: export_lora(tuned, record, folder / f"{kind}.safetensors", format=kind, strength=1.0) for kind in FORMATS
    }


def deltas(pipe):
    """What each layer adds to its weight, by path."""
    layers = lora_layers(pipe).items()
    return {name: alpha / len(down) * up.flatten(1) @ down.flatten(1) for name, (down, up, alpha) in layers}


@pytest.fixture(scope="module")
def drawn(tuned):
    return draw(tuned)


@pytest.mark.parametrize(
    ("loader", "kind"), [*(("diffusers", kind) for kind in FORMATS), *(("ours", kind) for kind in FORMATS[:2])]
)
def test_every_layer_comes_back(tuned, files, kind, loader):
    fresh = build_xl()
    if loader == "ours":
        load_lora(fresh, files[kind])
    else:
        fresh.load_lora_weights(str(files[kind].parent), weight_name=files[kind].name, adapter_name="default")
    expected, loaded = deltas(tuned), deltas(fresh)
    assert loaded.keys() == expected.keys()
    assert {name.partition(".")[0] for name in loaded} == set(kind_of(tuned).parts)
    for name, delta in expected.items():
        torch.testing.assert_close(loaded[name], delta, rtol=1e-5, atol=1e-7, msg=name)


def test_what_stock_diffusers_draws_with_kohyas_file_is_what_the_trained_pipeline_draws(files, drawn):
    fresh = build_xl()
    before = draw(fresh)
    fresh.load_lora_weights(str(files["kohya"].parent), weight_name=files["kohya"].name)
    torch.testing.assert_close(draw(fresh), drawn, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, drawn, atol=1e-2)


NAMES = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj":
    "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
    "unet.mid_block.attentions.0.proj_out": "lora_unet_middle_block_1_proj_out",
    "unet.up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0":
    "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0",
    "unet.down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
    "unet.up_blocks.2.resnets.0.time_emb_proj": "lora_unet_output_blocks_6_0_emb_layers_1",
    "unet.up_blocks.2.resnets.0.conv_shortcut": "lora_unet_output_blocks_6_0_skip_connection",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
    "unet.time_embedding.linear_1": "lora_unet_time_embed_0",
    "unet.add_embedding.linear_2": "lora_unet_label_emb_0_2",
    "unet.conv_in": "lora_unet_input_blocks_0_0",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "text_encoder_2.text_model.encoder.layers.31.mlp.fc1": "lora_te2_text_model_encoder_layers_31_mlp_fc1",
}  # fmt: skip


def test_kohyas_names_are_those_of_sd_scripts():
    """Its `networks/lora.py` names a layer by its path in `sdxl_original_unet.py`, and encoders te1 and te2."""
    kinds = ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    unet = SimpleNamespace(config=SimpleNamespace(layers_per_block=2, up_block_types=kinds))
    assert {layer: xl_names(unet)(layer) for layer in NAMES} == NAMES


def test_every_format_is_checked_to_the_bit(tuned, record, files, tmp_path):
    for path in files.values():
        assert inspect_file(path).record == record
        assert check_export(path).ok, str(check_export(path))
        raw = bytearray(path.read_bytes())
        raw[-40] ^= 1
        (tmp_path / path.name).write_bytes(raw)
        assert any("tensors" in problem for problem in check_export(tmp_path / path.name).problems)
    stored = layers_in(load_file(files["diffusers"]), inspect_file(files["diffusers"]).header)
    assert inspect_file(files["diffusers"]).header["basinguard.lora_sha256"] == lora_sha256(stored)
    assert lora_sha256(stored) == lora_sha256(lora_layers(tuned)), "the same in memory and in the file"


def test_the_header_names_the_generation(files):
    header = inspect_file(files["kohya"]).header
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["ss_v2"] == "False"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert "swapped" in header["modelspec.usage_hint"]
    assert "A1111" not in header["modelspec.usage_hint"]
    assert "text_encoder_2  10 layers, rank 4" in describe_file(files["kohya"])


def test_a_lora_of_xl_on_another_base_is_refused_in_one_line(files):
    with pytest.raises(ValueError, match=r"has layers for a text_encoder_2, which this base lacks") as refusal:
        load_lora(build_pipe(), files["kohya"])
    assert "\n" not in str(refusal.value)
