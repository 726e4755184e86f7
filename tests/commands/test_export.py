"""`basinguard export` from files, and uploading only when asked."""

from __future__ import annotations

import json
from typing import ClassVar

import huggingface_hub
import pytest

from basinguard.commands.export import WorkflowOptions, export
from basinguard.exports import hub
from basinguard.exports.directory import export_directory
from basinguard.exports.hub import push_to_hub
from basinguard.exports.integrity import check
from basinguard.exports.lora import export_lora
from basinguard.exports.merge import merged
from basinguard.exports.provenance import Origin, read_origin
from support.exports import build_record


@pytest.fixture
def saved(tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_directory_and_a_workflow_from_files(tmp_path, saved, record, monkeypatch):
    monkeypatch.setattr(hub, "push_to_hub", None)  # calling it would fail
    (tmp_path / "record.json").write_text(record.to_json())
    export(str(saved), tmp_path / "record.json", tmp_path / "out")
    assert check(tmp_path / "out").ok
    workflow = WorkflowOptions(steps=50, scheduler="karras")
    export(str(saved), tmp_path / "record.json", tmp_path / "flow.json", kind="comfyui", workflow=workflow)
    assert json.loads((tmp_path / "flow.json").read_text())["after"]["inputs"]["steps"] == 50
    with pytest.raises(FileExistsError, match="overwrite"):
        export(str(saved), tmp_path / "record.json", tmp_path / "flow.json", kind="comfyui")


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
    known = build_record(merged(tuned))
    export_lora(tuned, known, tmp_path / "cats.safetensors", format="diffusers")
    (tmp_path / "record.json").write_text(known.model_copy(update={"weights_sha256": ""}).to_json())
    export(str(saved), tmp_path / "record.json", tmp_path / "out", lora=tmp_path / "cats.safetensors")
    assert check(tmp_path / "out").ok
    kohya = tmp_path / "kohya.safetensors"
    export(str(saved), tmp_path / "record.json", kohya, kind="kohya", lora=tmp_path / "cats.safetensors")
    assert check(kohya).ok


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
