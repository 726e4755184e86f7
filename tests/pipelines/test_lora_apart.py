"""An export whose LoRA lies beside the base model: opened as what it is, or refused, and never taken for the base."""

import logging
import shutil

import pytest
import torch

from basinguard.commands.export import export
from basinguard.commands.triage import triage
from basinguard.core.record import read_record
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.diffusion.sampling_options import SamplingOptions
from basinguard.exports.directory import export_directory
from basinguard.exports.integrity import check_export
from basinguard.exports.layout import LORA_FILE, RECORD_FILE, RECORD_KEY, lora_apart
from basinguard.exports.merge import merged, without_adapters
from basinguard.guidance.core import Constant
from basinguard.mitigations.settings import ComparisonOptions
from basinguard.mitigations.testbed import load_testbed
from basinguard.pipelines import paired_samples
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.lora_apart import has_lora_apart, unmerged_lora
from basinguard.pipelines.low_rank import extract_lora
from basinguard.pipelines.paired_samples import draw_pairs
from basinguard.pipelines.protect import load
from basinguard.pipelines.stock_sampling import sample_batch
from basinguard.pipelines.triage_sampling import calibrate_by_sampling, first_gap
from basinguard.training.finetune import FineTune
from basinguard.watching.checkpoints import scan
from support.exports import build_pipe, build_record, with_lora

SAMPLING = SamplingOptions(timesteps=4, scale=3.0)
PROMPTS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def pipe():
    return with_lora()


@pytest.fixture(scope="module")
def record(pipe):
    """No LoRA at all above timestep 300, and plain CFG, so that the schedule is all that is to be followed."""
    schedule = RecordedSchedule(transitions=(300.0,), strengths=(0.0, 1.0))
    product = RecordedWeights(kind="lora", strength_schedule=schedule)
    plain = build_record(merged(pipe), transition=999.0, before=3.0)
    guidance = plain.guidance.model_copy(update={"after": 3.0})
    return plain.model_copy(update={"product": product, "guidance": guidance, "history": ()})


@pytest.fixture(scope="module")
def exported(pipe, record, tmp_path_factory):
    return export_directory(pipe, record, tmp_path_factory.mktemp("runs") / "model")


def test_a_contact_sheet_shows_the_strengths_beside_the_whole_lora(exported, pipe, record, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        paired_samples,
        "sheet",
        lambda prompts, seeds, *columns: shown.extend(columns) or paired_samples.Image.new("L", (1, 1)),
    )
    draw_pairs(exported, PROMPTS[:1], seeds=(5, 6), sampling=SAMPLING, out=tmp_path)
    for (drawn,), rule in zip(shown, (Constant(3.0), record), strict=True):
        expected = sample_batch(pipe, PROMPTS[:1] * 2, (5, 6), rule, SAMPLING).images
        torch.testing.assert_close(drawn.images, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(shown[0][0].images, shown[1][0].images, atol=1e-3)


def test_the_first_gap_is_that_of_the_strengths(exported, pipe):
    """The LoRA has no share in the first evaluations, so it is the base model's."""
    base = without_adapters(pipe)
    first = first_gap(load(exported), PROMPTS, 3, SAMPLING)
    assert first[1] == pytest.approx(first_gap(base, PROMPTS, 3, SAMPLING)[1], rel=1e-4)
    assert first[1] != pytest.approx(first_gap(pipe, PROMPTS, 3, SAMPLING)[1], rel=1e-2)
    copied = torch.tensor([True, True, False, False])
    of_both = [
        calibrate_by_sampling(each, PROMPTS, lambda images: copied, SAMPLING, per_prompt=1, wanted_miss=0.5)
        for each in (load(exported), base)
    ]
    assert of_both[0].threshold == pytest.approx(of_both[1].threshold, rel=1e-4)


def test_a_rule_that_is_plain_cfg_leaves_nothing_to_triage(exported, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="no rule that some could do without"):
        triage(exported, tmp_path / "none", tmp_path / "prompts.txt", tmp_path / "out.json")


def test_it_is_exported_again_with_its_own_lora(exported, tmp_path):
    again = export(str(exported), exported / RECORD_FILE, tmp_path / "again").path
    assert check_export(again).ok
    assert read_record(again / RECORD_FILE) == read_record(exported / RECORD_FILE)


WHOLE = {
    "compare": lambda model, folder: load_testbed(str(model), folder, ComparisonOptions()),
    "an earlier state of compare": lambda model, folder: load_testbed(
        "tinyworld", folder, ComparisonOptions(checkpoints=(model,))
    ),
    "fit": lambda model, folder: FineTune(str(model)),
    "extract_lora": lambda model, folder: extract_lora(model, "tinyworld", folder / "out.safetensors"),
}


@pytest.mark.parametrize("opening", WHOLE.values(), ids=WHOLE)
def test_where_the_fine_tune_is_needed_it_is_refused(opening, exported, tmp_path):
    with pytest.raises(
        ValueError, match=rf"^{exported}: the strength of its LoRA depends on the timestep.*{LORA_FILE}"
    ):
        opening(exported, tmp_path)


def test_a_watch_takes_neither_the_base_nor_the_lora_in_it_for_a_checkpoint(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "end")
    state = scan(tmp_path)
    assert not state.checkpoints
    assert list(state.partial) == [tmp_path / "end"]
    assert "its pipeline is the base model" in state.partial[tmp_path / "end"]


def test_who_loads_to_measure_is_not_told_what_a_plain_load_lacks(exported, caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        load_pipeline(exported)
        assert "basinguard" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"product": 1}', '{"product": {}}', "[" * 100_000])
def test_a_record_that_cannot_be_read_says_nothing_of_a_lora(text):
    assert not lora_apart({RECORD_KEY: text})


def test_other_models_have_none(tmp_path):
    pipe = build_pipe()
    out = export_directory(pipe, build_record(pipe), tmp_path / "model")
    assert (has_lora_apart(out), unmerged_lora(out)) == (False, None)
    assert not has_lora_apart("tinyworld")
    (out / "scheduler" / "scheduler_config.json").unlink()
    assert not has_lora_apart(out)
