"""`basinguard export` from files, and uploading only when asked."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from peft import LoraConfig

from basinguard.cli import main
from basinguard.commands import calibrate
from basinguard.commands.export import WorkflowOptions, export
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.exports import hub
from basinguard.exports.directory import export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.hub import push_to_hub
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import export_lora
from basinguard.exports.merge import merged
from basinguard.exports.provenance import Origin, read_origin
from basinguard.pipelines.loading import load_pipeline
from support.exports import build_pipe, build_record


@pytest.fixture
def saved(tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_directory_and_a_workflow_from_files(tmp_path, saved, record, monkeypatch):
    monkeypatch.setattr(hub, "push_to_hub", None)  # calling it would fail
    (tmp_path / "record.json").write_text(record.to_json())
    export(str(saved), tmp_path / "record.json", tmp_path / "out")
    assert check_export(tmp_path / "out").ok
    workflow = WorkflowOptions(steps=50, scheduler="karras")
    export(str(saved), tmp_path / "record.json", tmp_path / "flow.json", kind="comfyui", workflow=workflow)
    assert json.loads((tmp_path / "flow.json").read_text())["after"]["inputs"]["steps"] == 50
    with pytest.raises(FileExistsError, match="overwrite"):
        export(str(saved), tmp_path / "record.json", tmp_path / "flow.json", kind="comfyui")


def test_a_workflow_draws_and_loads_what_the_command_line_says(tmp_path, saved, record, capsys):
    (tmp_path / "record.json").write_text(record.to_json())
    flags = ["--prompt", "a red cat", "--steps", "10", "--sampler", "euler_ancestral", "--scheduler", "karras"]
    lora = ["--lora", str(tmp_path / "cats.safetensors")]
    main(
        [
            "export",
            str(saved),
            str(tmp_path / "record.json"),
            str(tmp_path / "flow.json"),
            "--kind",
            "comfyui",
            *flags,
            *lora,
        ]
    )
    assert f"it loads models/diffusers/{saved.name} and models/loras/cats.safetensors" in capsys.readouterr().out
    nodes = json.loads((tmp_path / "flow.json").read_text())
    assert nodes["prompt"]["inputs"]["text"] == "a red cat"
    assert nodes["load"]["inputs"] == {"model_path": saved.name}
    assert nodes["lora"]["inputs"]["lora_name"] == "cats.safetensors"
    after = nodes["after"]["inputs"]
    assert (after["steps"], after["sampler_name"], after["scheduler"]) == (10, "euler_ancestral", "karras")


def test_exporting_an_export_again_keeps_what_it_says_of_its_origin(tmp_path, pipe, record):
    origin = Origin(base_revision="abc", base_sha256="1" * 64, config={"rank": 4})
    first = export_directory(pipe, record, tmp_path / "first", origin=origin)
    (tmp_path / "record.json").write_text(record.to_json())
    export(str(first), tmp_path / "record.json", tmp_path / "second")
    assert (tmp_path / "second" / "provenance.json").read_text() == (first / "provenance.json").read_text()
    assert read_origin(first, record.weights_sha256) == origin
    assert read_origin(first, "0" * 64) == read_origin(tmp_path, record.weights_sha256) == Origin()
    (first / "provenance.json").write_text('{"weights_sha256": "' + record.weights_sha256 + '", "base": []}')
    with pytest.raises(ValueError, match=r"provenance\.json: not a provenance that basinguard wrote"):
        read_origin(first, record.weights_sha256)


def test_a_lora_file_becomes_a_merged_directory_or_a_file_of_the_other_format(tmp_path, saved, tuned):
    record = build_record(merged(tuned))
    export_lora(tuned, record, tmp_path / "cats.safetensors", format="diffusers")
    (tmp_path / "record.json").write_text(record.model_copy(update={"weights_sha256": ""}).to_json())
    export(str(saved), tmp_path / "record.json", tmp_path / "out", lora=tmp_path / "cats.safetensors")
    assert check_export(tmp_path / "out").ok
    kohya = tmp_path / "kohya.safetensors"
    export(str(saved), tmp_path / "record.json", kohya, kind="kohya", lora=tmp_path / "cats.safetensors")
    assert check_export(kohya).ok


class Api:
    """Takes uploads and remembers them."""

    calls: ClassVar[list[tuple]] = []

    def __init__(self, token=None):
        self.calls.clear()

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options["private"]))

    def upload_folder(self, *, folder_path, repo_id, commit_message):
        self.calls.append(("upload", repo_id, folder_path.name))
        return "https://example/commit"


def test_an_upload_is_private_and_only_of_what_passes_the_check(tmp_path, pipe, record, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    out = export_directory(pipe, record, tmp_path / "out")
    assert push_to_hub(out, "owner/name") == "https://example/commit"
    assert Api.calls == [("create", "owner/name", True), ("upload", "owner/name", "out")]
    (out / "README.md").write_text("changed")
    Api.calls.clear()
    with pytest.raises(ValueError, match=r"nothing uploaded.*README\.md was changed"):
        push_to_hub(out, "owner/name")
    assert Api.calls == []


LORAS = {
    "mixed alphas": {"alpha_pattern": {"to_q": 3}},
    "mixed ranks": {"rank_pattern": {"to_q": 5}},
    "LoCon": {"target_modules": ["to_q", "conv1", "conv_shortcut"]},
}


def drawn(pipe):
    options = {"guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "latent"}
    return pipe("a", generator=torch.Generator().manual_seed(3), **options).images


@pytest.mark.parametrize(
    "trained", ["LoCon", *(pytest.param(name, marks=pytest.mark.long) for name in ("mixed alphas", "mixed ranks"))]
)
def test_what_calibrate_takes_export_takes(tmp_path, saved, record, trained):
    """A file of some trainer is loaded, calibrated as merged weights, exported, and read by stock diffusers."""
    tuned = build_pipe()
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_v"], "init_lora_weights": False}
    tuned.unet.add_adapter(LoraConfig(**config | LORAS[trained]))
    tuned.unet.save_lora_adapter(tmp_path, weight_name="theirs.safetensors")
    loaded = load_pipeline(saved, lora=tmp_path / "theirs.safetensors")
    own = record.model_copy(update={"weights_sha256": weights_sha256(merged(loaded))})
    (tmp_path / "record.json").write_text(own.to_json())
    expected = drawn(tuned)
    for kind in ("kohya", "diffusers"):
        out = tmp_path / f"{kind}.safetensors"
        export(str(saved), tmp_path / "record.json", out, kind=kind, lora=tmp_path / "theirs.safetensors")
        stock = build_pipe()
        stock.load_lora_weights(str(tmp_path), weight_name=out.name)
        torch.testing.assert_close(drawn(stock), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(drawn(load_pipeline(saved, lora=out)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "ships"), [("", "guarded"), ("lora", "my cat_guarded.safetensors"), ("by timestep", "guarded")]
)
def test_the_command_that_calibrate_prints_runs_as_printed(tmp_path, saved, tuned, record, capsys, form, ships):
    folder = tmp_path / "my results"
    folder.mkdir()
    path = export_lora(tuned, build_record(merged(tuned)), tmp_path / "my cat.safetensors") if form else None
    measured = build_record(merged(tuned)) if form else record
    if form == "by timestep":
        schedule = RecordedSchedule(transitions=(500.0,), strengths=(0.5, 1.0))
        product = RecordedWeights(kind="lora", strength_schedule=schedule)
        measured = measured.model_copy(update={"product": product})
    (folder / "record.json").write_text(measured.to_json())
    calibration = SimpleNamespace(record=measured)
    calibrate.show(calibration, {"model": str(saved), "out": folder, "settings": SimpleNamespace(lora=path)})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("basinguard ")]
    main(shlex.split(line)[1:])
    assert check_export(folder / ships).ok
