"""The verbs of what ships, on Stable Diffusion XL: export, check, verify and stamp of a LoRA on its base."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from basinguard.commands.check import check
from basinguard.commands.export import export
from basinguard.commands.stamp import stamp
from basinguard.commands.verify import verify
from basinguard.core.metric import Metric
from basinguard.exports.inspect import inspect_file
from basinguard.exports.lora import export_lora
from basinguard.exports.merge import merged
from basinguard.exports.model_kind import kind_at
from basinguard.sessions.verification import GUARDED
from basinguard.sessions.verification_options import VerificationOptions
from support.xl_exports import build_xl, xl_record, xl_with_lora

METRIC = Metric(embedder="structure-colour-v1", threshold=0.9, source="given")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, a LoRA of it whose header says nothing, as trainers leave it, and the record of both together."""
    folder = tmp_path_factory.mktemp("xl")
    build_xl().save_pretrained(folder / "base")
    tuned = xl_with_lora(["attn2.to_k", "attn1.to_v", "conv_in"])
    record = xl_record(merged(tuned), before=0.0)
    sampler = record.sampler.model_copy(update={"timesteps": 2})
    record = record.model_copy(update={"base": str(folder / "base"), "metric": METRIC, "sampler": sampler})
    save_file(
        load_file(export_lora(tuned, record, folder / "own.safetensors", strength=1.0)), folder / "cats.safetensors"
    )
    (folder / "record.json").write_text(record.model_copy(update={"weights_sha256": ""}).to_json())
    return folder


def test_a_lora_on_its_base_is_exported_checked_and_verified(files, scene_folder, tmp_path):
    arguments = str(files / "base"), files / "record.json", tmp_path / "model"
    export(*arguments, lora=files / "cats.safetensors", share_private=True)
    assert check(tmp_path / "model").ok
    assert kind_at(tmp_path / "model").xl
    rows = verify(tmp_path / "model", scene_folder, VerificationOptions(per_caption=1), out=tmp_path / "verified")
    assert list(rows) == ["base", "cfg", GUARDED]
    assert rows["cfg"].unet_evals == 4
    assert rows[GUARDED].unet_evals == 3, "at timestep 999 the unconditional branch alone, at 499 both"
    assert inspect_file(tmp_path / "verified" / "record.json").record.verified == rows[GUARDED].risk


def test_a_strangers_lora_is_stamped_with_its_record(files, tmp_path):
    stamped = stamp(files / "cats.safetensors", files / "record.json", tmp_path / "stamped.safetensors")
    assert check(stamped).ok
    hint = inspect_file(stamped).header["modelspec.usage_hint"]
    assert "ComfyUI: KSamplerAdvanced" in hint
    assert "A1111" not in hint, "prompt editing cannot follow a rule of XL"
