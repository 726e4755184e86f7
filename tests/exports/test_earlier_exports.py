"""An export that an earlier version wrote stays readable, to the last character: `before/` holds its two JSON files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import basinguard
from basinguard.core.record import read_record
from basinguard.exports.directory import export_directory, write_sums
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
from basinguard.exports.layout import CODE, RECORD_FILE, SCHEDULER_FILE, without_history
from basinguard.exports.lora import export_lora
from basinguard.guidance.core import SwitchAt
from basinguard.pipelines.protect import last_trace, rule_of

BEFORE = Path(__file__).with_name("before")


@pytest.fixture
def earlier(tmp_path, pipe, record) -> Path:
    """An export with the JSON files of an earlier version and code that is not this version's."""
    folder = export_directory(pipe, record, tmp_path / "model")
    for name in (RECORD_FILE, SCHEDULER_FILE):
        shutil.copy(BEFORE / name, folder / name)
    for name in CODE:
        (folder / name).write_text("# another version\n")
    write_sums(folder)
    return folder


def test_its_record_is_read_and_written_again_in_the_words_of_today():
    record, form = read_record(BEFORE / RECORD_FILE), json.loads((BEFORE / RECORD_FILE).read_text("utf-8"))
    assert form.pop("schema_version") == 1
    again = json.loads(record.to_json())
    dropped = {"quality", "plain_quality"}
    form["metric"] |= {"recalls": {}}  # what was not measured then is empty
    for each in form["history"]:
        assert each.pop("fidelity") is None  # `taught` says it now
        each |= {"taught": None, "taught_rulers": [], "taught_problem": "", "risk_alone": None}
    assert {key: again[key] for key in form.keys() - dropped} == {k: v for k, v in form.items() if k not in dropped}
    assert (record.schema_version, record.taught, record.product.strength) == (2, None, 1.0)
    (report,) = record.history
    assert (report.epoch, report.train_step, len(report.images)) == (79, 160, 2)
    assert inspect_file(BEFORE / SCHEDULER_FILE).record == without_history(record)


def test_it_is_loaded_and_sampled_by_its_rule(earlier):
    pipe = basinguard.load(earlier)
    assert rule_of(pipe) == SwitchAt(500.0, before=-2.0, after=None)
    pipe.set_progress_bar_config(disable=True)
    pipe("red circle", num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(0))
    assert [float(observation.scale[0]) for observation in last_trace(pipe)] == [-2.0, -2.0, 7.5, 7.5]


def test_it_is_checked_and_its_other_code_is_pointed_out(earlier):
    outcome = check_export(earlier)
    assert not [problem for problem in outcome.problems if "weights" not in problem]
    assert "tell the same record" in outcome.verified[-1]
    (note,) = outcome.notes
    assert "not those of this version" in note


def test_inspecting_and_checking_load_no_torch(tmp_path, pipe, record, tuned):
    export_directory(pipe, record, tmp_path / "model")
    calibration = record.model_copy(update={"weights_sha256": ""})
    for format in ("kohya", "diffusers"):
        export_lora(tuned, calibration, tmp_path / f"{format}.safetensors", format=format)
    code = f"""
import sys
from pathlib import Path
from basinguard.exports.inspect import inspect_file
from basinguard.exports.integrity import check_export
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    print(str(inspect_file(path))[:4], check_export(path).ok)
print(sorted({{"torch", "diffusers", "transformers", "matplotlib"}} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:4] == ["file True"] * 3 + ["[]"]
