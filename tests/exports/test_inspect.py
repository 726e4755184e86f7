"""Reading exports back, and what strangers can put into them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from basinguard.cli import main
from basinguard.core.record import Record, parse_record
from basinguard.core.safetensors_header import read_header
from basinguard.core.schema import MAX_BYTES
from basinguard.core.text import one_line
from basinguard.exports.comfyui import comfyui_workflow
from basinguard.exports.directory import export_directory, write_sums
from basinguard.exports.inspect import MAX_HEADER, SHOWN, describe_file, inspect_file
from basinguard.exports.integrity import check_directory, check_export
from support.exports import build_pipe, build_record


@pytest.fixture(scope="module")
def original(tmp_path_factory, pipe, record) -> Path:
    return export_directory(pipe, record, tmp_path_factory.mktemp("once") / "model")


@pytest.fixture
def exported(tmp_path, original) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def header_only(path: Path, header: dict[str, str]) -> Path:
    save_file({"x": torch.zeros(1)}, path, metadata=header)
    return path


def test_everything_that_carries_a_record_gives_it_back(exported, record, tmp_path):
    whole, brief = record, record.model_copy(update={"history": ()})
    assert inspect_file(exported).record == whole
    assert inspect_file(exported / "basinguard.json").record == whole
    assert inspect_file(exported / "scheduler" / "scheduler_config.json").record == brief
    lora = header_only(tmp_path / "x.safetensors", {"basinguard.record": record.to_json()})
    assert inspect_file(lora).record == whole
    (exported / "basinguard.json").unlink()
    assert inspect_file(exported).record == brief


def test_inspect_prints_the_rule_and_how_sure(exported, capsys):
    main(["inspect", str(exported)])
    out = capsys.readouterr().out
    assert "scale -2 above timestep 500 (sigma 1.6" in out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["verdict"] == "Safe by its rule."
    assert rows["risk"] == "3.0 % [0.0, 11.0] (n = 64); 83.0 % [75.0, 91.0] (n = 64) by plain CFG without a guard"
    main(["inspect", str(exported), "--json"])
    assert Record.from_json(capsys.readouterr().out) == inspect_file(exported).record


def test_check_says_all_right(exported, capsys):
    main(["check", str(exported)])
    out = capsys.readouterr().out
    assert "all right" in out
    assert "the record belongs to these weights" in out
    assert "its code is that of this version" in out


def tamper_weights(out: Path) -> None:
    path = out / "unet" / "diffusion_pytorch_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)


def tamper_record(out: Path) -> None:
    text = (out / "basinguard.json").read_text()
    (out / "basinguard.json").write_text(text.replace('"transition": 500.0', '"transition": 900.0'))


def add_code(out: Path) -> None:
    (out / "unet" / "evil.py").write_text("print('hello')")


def lose_a_file(out: Path) -> None:
    (out / "basinguard_guidance.py").unlink()


def link_away(out: Path) -> None:
    (out / "pipeline.py").unlink()
    (out / "pipeline.py").symlink_to("/etc/hostname")


def lose_the_sums(out: Path) -> None:
    (out / "SHA256SUMS").unlink()


def name_a_foreign_file(out: Path) -> None:
    sums = out / "SHA256SUMS"
    sums.write_text(f"{sums.read_text()}{'0' * 64}  ../../../etc/hostname\n")


def write_nonsense_sums(out: Path) -> None:
    (out / "SHA256SUMS").write_text("hello\n")


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (tamper_weights, "unet/diffusion_pytorch_model.safetensors was changed"),
        (tamper_weights, "the record was made for"),
        (tamper_record, "basinguard.json was changed"),
        (tamper_record, "another record than basinguard.json"),
        (add_code, "unet/evil.py is not in SHA256SUMS"),
        (lose_a_file, "basinguard_guidance.py is missing"),
        (link_away, "pipeline.py was changed"),
        (lose_the_sums, "SHA256SUMS is missing"),
        (name_a_foreign_file, "../../../etc/hostname is missing"),
        (write_nonsense_sums, "a line that is not a sum"),
    ],
)
def test_check_finds_what_was_tampered_with(exported, tamper, problem, capsys):
    tamper(exported)
    assert [p for p in check_export(exported).problems if problem in p]
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(exported)])
    assert "NOT what it says" in capsys.readouterr().out


def test_what_the_hub_adds_and_its_links_are_no_tampering(exported, tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes((exported / "pipeline.py").read_bytes())
    (exported / "pipeline.py").unlink()
    (exported / "pipeline.py").symlink_to(blob)
    (exported / ".gitattributes").write_text("*.safetensors filter=lfs")
    (exported / ".cache" / "huggingface").mkdir(parents=True)
    (exported / ".cache" / "huggingface" / "x.lock").write_text("")
    assert check_export(exported).ok, str(check_export(exported))


def test_new_sums_do_not_hide_other_weights(exported):
    tamper_weights(exported)
    write_sums(exported)
    assert [p for p in check_directory(exported).problems if "the record was made for" in p]


def test_other_weights_of_the_same_shape_are_told_apart(tmp_path, pipe, exported):
    other = build_pipe(seed=1)
    export_directory(other, build_record(other), tmp_path / "other")
    swapped = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    swapped.write_bytes((exported / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert any("the record was made for" in p for p in check_export(tmp_path / "other").problems)


@pytest.mark.parametrize("version", [0, 3, "1", "2", True, None, [1], [2]])
def test_an_unknown_schema_is_refused_by_its_number(tmp_path, record, version):
    text = json.dumps(json.loads(record.to_json()) | {"schema_version": version})
    header = header_only(tmp_path / "x.safetensors", {"basinguard.record": text})
    with pytest.raises(ValueError, match=r"x\.safetensors: record schema"):
        inspect_file(header)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path):
    huge = tmp_path / "huge.safetensors"
    huge.write_bytes(struct.pack("<Q", MAX_HEADER + 1) + b"{" * 100)
    with pytest.raises(ValueError, match=f"header of {MAX_HEADER + 1} bytes"):
        read_header(huge, longest=MAX_HEADER)
    lying = tmp_path / "lying.safetensors"
    lying.write_bytes(struct.pack("<Q", 10**6) + b"{}")
    with pytest.raises(ValueError, match="ends too early"):
        read_header(lying)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "not a JSON object"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "not a JSON object|record schema"),
        ('{"schema_version": 1}', "guidance: Field required"),
        ("x" * (MAX_BYTES + 1), "at most"),
        ("", "not a JSON object"),
    ],
    ids=["brackets", "nested", "empty record", "huge", "nothing"],
)
def test_hostile_records_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_record(text, tmp_path / "x")


def test_unknown_keys_and_infinite_numbers_are_refused(tmp_path, record):
    form = json.loads(record.to_json())
    with pytest.raises(ValueError, match="extra"):
        parse_record(json.dumps(form | {"extra": "../../etc/passwd"}), tmp_path)
    form["guidance"]["sigma"] = float("inf")
    with pytest.raises(ValueError, match=r"guidance\.sigma"):
        parse_record(json.dumps(form), tmp_path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=400))
def test_nothing_a_stranger_wrote_controls_the_terminal(text):
    shown = one_line(text, SHOWN)
    assert shown.isprintable() or shown == ""
    assert len(shown) <= 160


def test_terminal_codes_in_a_record_and_a_header_are_shown_as_spaces(tmp_path, record):
    evil = record.model_copy(update={"promise": "\x1b[2Jall is well\x07\u202e"})
    header = {"basinguard.record": evil.to_json(), "ss_\x1b[31m": "\x1b]0;owned\x07", "modelspec.title": "a\nb"}
    shown = str(inspect_file(header_only(tmp_path / "x.safetensors", header)))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "all is well" in shown


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "none", FileNotFoundError, "no such file"),
        (lambda p: p, FileNotFoundError, r"neither basinguard\.json nor"),
        (lambda p: header_only(p / "x.safetensors", {"format": "pt"}), ValueError, "no 'basinguard.record'"),
        (lambda p: written(p / "x.json", "[1]"), ValueError, "not a JSON object"),
        (lambda p: written(p / "scheduler_config.json", "{}"), ValueError, "carries no record"),
        (lambda p: written(p / "scheduler_config.json", "[]"), ValueError, "not a JSON object"),
    ],
)
def test_what_is_no_export_is_said_to_be_none(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        inspect_file(make(tmp_path))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_check_needs_a_directory_or_a_lora(exported):
    with pytest.raises(ValueError, match="expected an exported directory, a LoRA or a single file"):
        check_export(exported / "basinguard.json")


@pytest.mark.parametrize("name", ["lora.bin", "model.ckpt", "lora.pt"])
def test_a_file_that_may_run_code_is_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"may run code and are never opened; convert it to \.safetensors"):
        inspect_file(tmp_path / name)


def test_layers_that_do_not_say_what_they_were_trained_for(tmp_path):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    save_file({f"{name}A.weight": torch.ones(2, 8), f"{name}B.weight": torch.ones(8, 2)}, tmp_path / "a.safetensors")
    assert "trained for   not said by these layers" in describe_file(tmp_path / "a.safetensors")


def test_a_workflow_is_told_from_a_record(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(comfyui_workflow(build_record(build_pipe()))))
    with pytest.raises(ValueError, match="a ComfyUI workflow, which carries no record; inspect the model or LoRA"):
        inspect_file(path)
