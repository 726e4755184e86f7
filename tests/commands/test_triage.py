"""The verb `triage`: from an export to a record that knows which prompts need the rule."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from basinguard.calibration.terms import CalibrationTerms
from basinguard.commands.calibrate import calibrate
from basinguard.commands.triage import show, triage
from basinguard.core.record import read_record
from basinguard.exports.directory import export_directory
from basinguard.guard.guard import Guard
from basinguard.guidance.triage import Triage
from basinguard.pipelines import triage_sampling
from basinguard.pipelines.protect import load, rule_of
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.sessions.session import open_model
from support.exports import build_guidance

TERMS = CalibrationTerms(
    alpha=0.6, delta=0.3, pairs=6, before=(0.0,), transitions=(700.0,), strengths=(1.0,), scales=(3.0,),
    search_pairs=2, taught_samples=2, chain=1,
)  # fmt: skip


@pytest.fixture
def exported(tiny_pipeline_dir, scene_folder, tmp_path):
    base = str(tiny_pipeline_dir)
    settings = SessionSettings(base, scale=3.0, timesteps=2)
    record = calibrate(base, data=scene_folder, settings=settings, terms=TERMS).record
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, safety_checker=None)
    ruled = record.model_copy(update={"guidance": build_guidance(pipe, before=0.0, transition=700.0)})
    return export_directory(pipe, ruled, tmp_path / "model", share_private=True)


def test_from_an_export_to_one_that_spares_harmless_prompts(exported, scene_folder, tmp_path, monkeypatch, capsys):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "record.json"
    prompts.write_text("a house\na kite\n", encoding="utf-8")
    # random weights copy nothing: say that the six training captions do, the two others do not
    monkeypatch.setattr(Guard, "is_copy", lambda self, images: torch.arange(len(images)) < 6)
    record = triage(exported, scene_folder, prompts, out, per_prompt=1, wanted_miss=0.0)
    result = record.triage
    assert (result.miss.n, result.false_alarm.n) == (3, 1)
    show(record, {"out": out})
    assert "means harmless; wrong for" in capsys.readouterr().out
    assert read_record(out).triage == result
    assert read_record(exported / "basinguard.json").triage is None, "the export itself is not touched"
    pipe = StableDiffusionPipeline.from_pretrained(exported, safety_checker=None)
    again = export_directory(pipe, read_record(out), tmp_path / "again")
    rule = rule_of(load(again, triage=True))
    assert isinstance(rule, Triage)
    assert rule.threshold == result.threshold
    with pytest.raises(FileExistsError, match=r"record\.json.*nothing is overwritten"):
        triage(exported, scene_folder, prompts, out)


def test_a_record_of_other_weights_is_refused(exported, scene_folder, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a house\n", encoding="utf-8")
    monkeypatch.setattr(triage_sampling, "calibrate_by_sampling", None)  # calling it would fail
    opened = open_model(str(exported), scene_folder, SessionSettings(scale=3.0, timesteps=2))
    other = opened.provenance.weights_sha256[::-1]
    path = exported / "basinguard.json"
    path.write_text(path.read_text().replace(opened.provenance.weights_sha256, other))
    with pytest.raises(ValueError, match="the record was made for weights"):
        triage(exported, scene_folder, tmp_path / "prompts.txt", tmp_path / "out.json")
