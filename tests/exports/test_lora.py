"""A LoRA in either format draws what the trained pipeline draws, and carries its record."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from basinguard.core.record import Record, Strength
from basinguard.exports import lora
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import default_strength, export_lora, lora_layers
from basinguard.exports.lora_formats import layers_in, lora_sha256
from basinguard.exports.merge import merged
from support.exports import build_pipe, build_record, rate, with_lora

CALL = {"prompt": "a", "guidance_scale": 4.0, "num_inference_steps": 4, "output_type": "latent"}
SAFE = Strength(kind="lora", value=0.5, risk=rate(0.04), promise="the risk is at most 10%")


def draw(pipe) -> torch.Tensor:
    return pipe(**CALL, generator=torch.Generator().manual_seed(3)).images


@pytest.fixture(scope="module")
def record(tuned) -> Record:
    return build_record(merged(tuned))


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
@pytest.mark.filterwarnings("ignore:No LoRA keys:UserWarning")
def test_loaded_by_stock_diffusers_it_draws_the_same_images(tmp_path, tuned, record, kind):
    out = export_lora(tuned, record, tmp_path / "cats.safetensors", format=kind)
    fresh = build_pipe()
    before = draw(fresh)
    fresh.load_lora_weights(str(tmp_path), weight_name="cats.safetensors")
    torch.testing.assert_close(draw(fresh), draw(tuned), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, draw(tuned), atol=1e-2)
    assert check_export(out).ok, str(check_export(out))


def test_both_formats_hold_the_same_layers_and_the_record_comes_back(tmp_path, tuned, record):
    prints = set()
    for kind in ("kohya", "diffusers"):
        out = export_lora(tuned, record, tmp_path / f"{kind}.safetensors", format=kind)
        inspected = inspect_file(out)
        assert inspected.record == record
        prints.add(lora_sha256(layers_in(load_file(out), inspected.header)))
    assert prints == {lora_sha256(lora_layers(tuned))}


PATTERNS = {"rank_pattern": {"to_k": 5}, "alpha_pattern": {"to_v": 3}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kohya", PATTERNS),
        ("diffusers", {"use_rslora": True}),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("kohya", {}), ("kohya", {"use_rslora": True}), ("diffusers", {}), ("diffusers", PATTERNS))
        ),
    ],
)
def test_alpha_is_the_one_that_acts(tmp_path, kind, options):
    pipe = with_lora(**options)
    export_lora(pipe, build_record(merged(pipe)), tmp_path / "x.safetensors", format=kind)
    fresh = build_pipe()
    fresh.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    torch.testing.assert_close(draw(fresh), draw(pipe), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["diffusers", "diffusers-folded"])
def test_the_text_encoder_is_named_as_the_hub_names_it(tmp_path, tuned, record, kind):
    """diffusers 0.31 to 0.35 look for it below `text_model`; peft compares ends, so its settings fit either way."""
    out = export_lora(tuned, record, tmp_path / "cats.safetensors", format=kind)
    named = [name for name in load_file(out) if name.startswith("text_encoder.")]
    assert named
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in named)
    with safe_open(out, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert all(name.startswith("encoder.layers.") for name in settings["text_encoder.target_modules"])
    assert check_export(out).ok, str(check_export(out))


def test_with_alpha_folded_in_a_loader_that_takes_alpha_for_the_rank_draws_the_same(tmp_path, tuned, record):
    """As diffusers did before it read alphas from the header: the file without its header is the same LoRA."""
    out = export_lora(tuned, record, tmp_path / "folded.safetensors", format="diffusers-folded")
    assert check_export(out).ok
    assert inspect_file(out).record == record
    save_file(load_file(out), tmp_path / "bare.safetensors")
    for name in ("folded", "bare"):
        fresh = build_pipe()
        fresh.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors")
        torch.testing.assert_close(draw(fresh), draw(tuned), rtol=1e-4, atol=1e-4)
    layers = layers_in(load_file(out), inspect_file(out).header)
    assert {alpha / len(down) for down, _, alpha in layers.values()} == {1.0}


@pytest.mark.parametrize("source", ["by the record", pytest.param("by hand", marks=pytest.mark.long)])
def test_a_safe_strength_becomes_the_default_one(tmp_path, tuned, record, source):
    safe = record.model_copy(update={"strength": SAFE})
    if source == "by the record":
        out = export_lora(tuned, safe, tmp_path / "half.safetensors")
    else:
        out = export_lora(tuned, record, tmp_path / "half.safetensors", strength=0.5)
    fresh = build_pipe()
    fresh.load_lora_weights(str(tmp_path), weight_name="half.safetensors")
    half = build_pipe()
    export_lora(tuned, safe, tmp_path / "full.safetensors", strength=1.0)
    half.load_lora_weights(str(tmp_path), weight_name="full.safetensors", adapter_name="full")
    half.set_adapters("full", 0.5)
    torch.testing.assert_close(draw(fresh), draw(half), rtol=1e-4, atol=1e-4)
    inspected = inspect_file(out)
    assert inspected.header["basinguard.calibration.strength"] == "0.5"
    hint = inspected.header["modelspec.usage_hint"]
    assert "Strength 1 of this file is 0.5 of the trained one" in hint
    assert hint.endswith("the numbers before are those of strength 2.")
    assert ("where plain CFG copied 4.0 %" in hint) == (source == "by the record")


@pytest.mark.parametrize("change", [{"promise": ""}, {"kind": "interpolation"}, {"value": 0.0}])
def test_a_strength_that_promises_nothing_is_no_default(record, change):
    assert default_strength(record) == 1
    assert default_strength(record.model_copy(update={"strength": SAFE})) == 0.5
    assert default_strength(record.model_copy(update={"strength": SAFE.model_copy(update=change)})) == 1


def test_the_header_says_what_managers_and_interfaces_look_for(tmp_path, tuned, record):
    out = export_lora(tuned, record, tmp_path / "cats.safetensors")
    with safe_open(out, "pt") as file:
        header = file.metadata()
        names = list(file.keys())
        assert file.get_tensor("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha").item() == 8
    assert all(name.startswith(("lora_unet_", "lora_te_text_model_encoder_layers_0_self_attn_")) for name in names)
    assert header["ss_v2"] == "True"
    assert header["ss_base_model_version"] == "sd_v2_v"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "8")
    assert header["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert header["modelspec.prediction_type"] == "v"
    assert header["modelspec.license"] == "openrail++"
    assert "positive and negative swapped" in header["modelspec.usage_hint"]
    assert "first 10 of them" in header["modelspec.usage_hint"]
    assert all(isinstance(value, str) for value in header.values())


def test_merging_leaves_the_pipeline_alone_and_draws_the_same(tuned):
    before = draw(tuned)
    whole = merged(tuned)
    torch.testing.assert_close(draw(whole), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(draw(tuned), before)
    assert not [name for name in whole.unet.state_dict() if "lora" in name or "base_layer" in name]
    assert whole.vae is tuned.vae
    assert getattr(whole.text_encoder, "peft_config", None) is None


def test_the_record_may_name_the_merged_weights_or_the_lora_but_no_others(tmp_path, tuned, record):
    by_lora = record.model_copy(update={"weights_sha256": lora_sha256(lora_layers(tuned))})
    assert inspect_file(export_lora(tuned, by_lora, tmp_path / "a.safetensors")).record == by_lora
    empty = record.model_copy(update={"weights_sha256": ""})
    filled = inspect_file(export_lora(tuned, empty, tmp_path / "b.safetensors")).record
    assert filled.weights_sha256 == weights_sha256(merged(tuned))
    with pytest.raises(ValueError, match="made for weights ffff"):
        export_lora(tuned, record.model_copy(update={"weights_sha256": "f" * 64}), tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_a_changed_tensor_or_record_is_found(tmp_path, tuned, record):
    out = export_lora(tuned, record, tmp_path / "cats.safetensors")
    raw = bytearray(out.read_bytes())
    raw[-40] ^= 1
    (tmp_path / "bent.safetensors").write_bytes(raw)
    assert [p for p in check_export(tmp_path / "bent.safetensors").problems if "tensors" in p]
    promised = out.read_bytes().replace(b"for captions like the training ones", b"for captions like the training onez")
    (tmp_path / "told.safetensors").write_bytes(promised)
    assert check_export(tmp_path / "told.safetensors").problems == (
        "the record does not have the sum that the header's 'basinguard.record_sha256' says",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "x.bin"}, "expected \\*.safetensors"),
        ({"format": "lycoris"}, "kohya, diffusers or diffusers-folded"),
        ({"strength": 1.5}, "expected a share in"),
        ({"adapter": "other"}, "no LoRA named 'other'"),
    ],
)
def test_bad_requests_are_refused(tmp_path, tuned, record, options, message):
    out = tmp_path / options.pop("out", "x.safetensors")
    with pytest.raises(ValueError, match=message):
        export_lora(tuned, record, out, **options)
    assert list(tmp_path.iterdir()) == []


def test_dora_is_refused_by_name(tmp_path):
    pipe = with_lora(use_dora=True)
    with pytest.raises(ValueError, match="DoRA"):
        export_lora(pipe, build_record(build_pipe()), tmp_path / "x.safetensors")


def test_an_existing_file_survives_a_refusal_and_a_full_disk(tmp_path, tuned, record, monkeypatch):
    out = export_lora(tuned, record, tmp_path / "cats.safetensors")
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_lora(tuned, record, out)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lora, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_lora(tuned, record, out, overwrite=True)
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cats.safetensors"]


def test_no_private_word_is_in_the_header(tmp_path, tuned, record):
    secret = record.model_copy(update={"base": "/home/alice/secret/base"})
    out = export_lora(tuned, secret, tmp_path / "cats.safetensors")
    assert b"alice" not in out.read_bytes()
    assert json.loads(inspect_file(out).header["basinguard.record"])["base"] == "base"


def test_an_adapter_must_be_merged_before_a_directory_is_written(tmp_path, tuned, record):
    from basinguard.exports.directory import export_directory

    with pytest.raises(ValueError, match=r"carries LoRA adapters \(default\).*merged"):
        export_directory(tuned, record, tmp_path / "out")
    export_directory(merged(tuned), record, tmp_path / "out")
    assert check_export(tmp_path / "out").ok
