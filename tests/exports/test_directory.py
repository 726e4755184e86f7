"""A directory export: whole or not at all, stock to every loader, and it keeps secrets."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, PngImagePlugin
from safetensors import SafetensorError
from safetensors.torch import load_file

from basinguard.core.files import file_sha256, whole_file
from basinguard.core.record import Record, read_record
from basinguard.exports import directory
from basinguard.exports.client_files import add_vocabulary
from basinguard.exports.directory import CardPictures, export_directory
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.layout import without_history
from basinguard.pipelines.architecture import sd21_tokenizer
from basinguard.pipelines.protect import load, protect, unprotect
from support.exports import build_pipe, without_basinguard

# diffusers 0.42 with numpy 2
CALL = {"prompt": "a", "guidance_scale": 4.0, "num_inference_steps": 8, "output_type": "latent"}
CHILD = """
import sys, torch
sys.modules["basinguard"] = None
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
first, second, out = sys.argv[1:]
call = {"prompt": "a", "guidance_scale": 4.0, "num_inference_steps": 8, "output_type": "latent"}
def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call, generator=torch.Generator().manual_seed(3)).images.contiguous()
guarded = DiffusionPipeline.from_pretrained(first, custom_pipeline=first, trust_remote_code=True)
result = {"guarded": draw(guarded)}
guarded.scheduler = DPMSolverMultistepScheduler.from_config(guarded.scheduler.config)
result["swapped"] = draw(guarded)
plain = StableDiffusionPipeline.from_pretrained(first)
result["plain"] = draw(plain)
plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
plain.save_pretrained(second)
result["resaved"] = draw(DiffusionPipeline.from_pretrained(second, custom_pipeline=first, trust_remote_code=True))
try:
    import basinguard
except ImportError:
    save_file(result, out)
"""


def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL, generator=torch.Generator().manual_seed(3)).images


def swapped(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, pipe, record, samples) -> Path:
    out = tmp_path_factory.mktemp("runs") / "model"
    return export_directory(pipe, record, out, pictures=CardPictures(samples, ["red", "green"]))


@pytest.fixture
def brief(record) -> Record:
    """Without history: nothing to plot."""
    return without_history(record)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, exported) -> tuple[dict[str, torch.Tensor], Path]:
    """What code that cannot import basinguard draws from the export, and the copy that it saved again."""
    place = tmp_path_factory.mktemp("elsewhere")
    second, out = place / "second", place / "latents.safetensors"
    with without_basinguard() as patch:
        patch.setattr(sys, "argv", ["child.py", str(exported), str(second), str(out)])
        exec(compile(CHILD, "child.py", "exec"), {"__name__": "__main__"})
    return load_file(out), second


@pytest.mark.long
def test_a_process_of_its_own_draws_the_same_and_is_told_of_the_rule(elsewhere, exported, tmp_path):
    script, out = tmp_path / "child.py", tmp_path / "latents.safetensors"
    script.write_text(CHILD)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, str(script), str(exported), str(tmp_path / "second"), str(out)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "A plain load does NOT sample this checkpoint as it was measured" in done.stderr + done.stdout
    latents, _ = elsewhere
    assert all(torch.equal(drawn, latents[name]) for name, drawn in load_file(out).items())


def test_without_basinguard_the_export_samples_as_the_guarded_pipeline_in_memory(elsewhere, record):
    latents, _ = elsewhere
    pipe = build_pipe()
    assert torch.equal(latents["plain"], draw(pipe))
    assert torch.equal(latents["guarded"], draw(protect(pipe, record)))
    assert not torch.allclose(latents["guarded"], latents["plain"], atol=1e-2)


def test_the_rule_survives_a_scheduler_swap_and_a_save_by_a_stock_pipeline(elsewhere, exported, record):
    latents, second = elsewhere
    expected = draw(protect(swapped(build_pipe()), record))
    assert torch.equal(latents["swapped"], expected)
    assert torch.equal(latents["resaved"], expected)
    assert not (second / "basinguard.json").exists()
    assert torch.equal(draw(load(second)), expected)


def test_a_model_calibrated_at_a_smaller_size_draws_at_that_size(tmp_path, pipe, record):
    small = record.model_copy(update={"sampler": record.sampler.model_copy(update={"resolution": 8})})
    exported = export_directory(pipe, small, tmp_path / "small")
    assert StableDiffusionPipeline.from_pretrained(exported).unet.config.sample_size * pipe.vae_scale_factor == 8
    assert pipe.unet.config.sample_size == 8, "the pipeline in memory is as it was"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(exported)("a", num_inference_steps=2, output_type="latent").images.shape[-1] == 4


def test_basinguard_load_samples_as_the_pipeline_in_memory(exported, record, caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        assert torch.equal(draw(load(exported)), draw(protect(build_pipe(), record)))
        assert "basinguard" not in caplog.text, "the notice is for plain loads"
        StableDiffusionPipeline.from_pretrained(exported)
        assert "A plain load does NOT sample this checkpoint as it was measured" in caplog.text
        assert record.promise not in caplog.text, "a line of notice, not the whole record"
        assert len(caplog.text) < 600
    finally:
        logger.removeHandler(caplog.handler)


def test_the_record_is_whole_in_its_file_and_short_in_the_scheduler_config(exported, record):
    assert read_record(exported / "basinguard.json") == record
    inside = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())["_basinguard"]
    assert Record.from_json(inside) == without_history(record)
    assert json.loads((exported / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_every_file_is_listed_with_its_sum_and_the_code_is_verbatim(exported):
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    there = {p.relative_to(exported).as_posix() for p in exported.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert set(listed) == there
    assert all(file_sha256(exported / name) == digest for name, digest in listed.items())
    package = Path(directory.__file__).parents[1]
    assert (exported / "basinguard_guidance.py").read_bytes() == (package / "guidance" / "core.py").read_bytes()
    assert (exported / "pipeline.py").read_bytes() == (package / "exports/assets/pipeline.py").read_bytes()


def test_exporting_again_what_was_loaded_keeps_the_class_stock_and_the_record(exported, record, tmp_path):
    guarded = DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported), trust_remote_code=True)
    again = export_directory(guarded, record, tmp_path / "again")
    assert torch.equal(draw(load(again)), draw(load(exported)))
    assert type(unprotect(load(again))) is StableDiffusionPipeline


def test_no_local_path_is_written_anywhere(tmp_path, pipe, record):
    pipe.save_pretrained(tmp_path / "secret-home" / "base")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "secret-home" / "base")
    problem = record.history[0].model_copy(update={"problem": "cannot read secret-home/cat.png"})
    private_record = record.model_copy(update={"base": str(tmp_path / "secret-home" / "base"), "history": (problem,)})
    out = export_directory(loaded, private_record, tmp_path / "out")
    assert [p for p in out.rglob("*") if p.is_file() and b"secret-home" in p.read_bytes()] == []
    assert read_record(out / "basinguard.json").base == "base"
    shared = export_directory(loaded, private_record, tmp_path / "shared", share_private=True)
    assert read_record(shared / "basinguard.json") == private_record


def test_samples_lose_everything_but_their_pixels(tmp_path, pipe, brief):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("prompt", "a secret caption")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "noted.png", pnginfo=notes)
    out = export_directory(pipe, brief, tmp_path / "out", pictures=CardPictures([Image.open(tmp_path / "noted.png")]))
    assert b"secret" not in (out / "samples" / "00.png").read_bytes()
    assert Image.open(out / "samples" / "00.png").getpixel((0, 0)) == (0, 0, 255)


def test_an_existing_export_is_replaced_only_when_told(tmp_path, pipe, brief):
    out = export_directory(pipe, brief, tmp_path / "out")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_directory(pipe, brief, out)
    newer = brief.model_copy(update={"promise": "newer"})
    export_directory(pipe, newer, out, overwrite=True)
    assert read_record(out / "basinguard.json").promise == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_directory_with_somebody_elses_file_is_never_replaced(tmp_path, pipe, brief):
    out = export_directory(pipe, brief, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt.*no export wrote"):
        export_directory(pipe, brief, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(NotADirectoryError, match=r"notes\.txt"):
        export_directory(pipe, brief, out / "notes.txt", overwrite=True)


@pytest.mark.parametrize("stage", ["write_card", "write_sums"])
def test_on_a_full_disk_the_previous_export_stays_and_nothing_else(tmp_path, pipe, brief, monkeypatch, stage):
    out = export_directory(pipe, brief, tmp_path / "out")
    before = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory, stage, full)
    with pytest.raises(OSError, match="No space left"):
        export_directory(pipe, brief.model_copy(update={"promise": "newer"}), out, overwrite=True)
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_safetensors_makes_of_a_full_disk_is_an_error_of_the_system(tmp_path, pipe, brief, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(pipe.unet, "save_pretrained", full)
    with pytest.raises(OSError, match=r"out: cannot be written \(No space left"):
        export_directory(pipe, brief, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_when_the_last_rename_fails_the_previous_export_comes_back(tmp_path, pipe, brief, monkeypatch):
    out = export_directory(pipe, brief, tmp_path / "out")
    rename = Path.rename

    def fails(self, target):
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="broken disk"):
        export_directory(pipe, brief, out, overwrite=True)
    assert read_record(out / "basinguard.json") == brief
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_cannot_be_written_is_an_error_that_names_it(tmp_path, pipe, brief, monkeypatch):
    def refuse(prefix, dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match=tmp_path.name):
        export_directory(pipe, brief, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_other_weights_or_another_prediction_is_refused(tmp_path, pipe, brief):
    with pytest.raises(ValueError, match="made for weights ffffffffffff"):
        export_directory(pipe, brief.model_copy(update={"weights_sha256": "f" * 64}), tmp_path / "out")
    sampler = brief.sampler.model_copy(update={"prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="predicts 'epsilon'"):
        export_directory(pipe, brief.model_copy(update={"sampler": sampler}), tmp_path / "out")
    finer = brief.model_copy(update={"guidance": brief.guidance.model_copy(update={"refine": 4})})
    with pytest.raises(ValueError, match="refine=4, which a stock pipeline cannot apply"):
        export_directory(pipe, finer, tmp_path / "out")
    with pytest.raises(TypeError, match="cannot export a str"):
        export_directory("a pipeline", brief, tmp_path / "out")
    with pytest.raises(ValueError, match="1 samples and 2 prompts"):
        export_directory(pipe, brief, tmp_path / "out", pictures=CardPictures([Image.new("RGB", (2, 2))], ["a", "b"]))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_fingerprint_is_filled_in(tmp_path, pipe, brief):
    out = export_directory(pipe, brief.model_copy(update={"weights_sha256": ""}), tmp_path / "out")
    assert read_record(out / "basinguard.json").weights_sha256 == weights_sha256(pipe) == weights_sha256(out)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "file.txt"

    def write(text: str, fails: bool = False, **options: bool) -> None:
        with whole_file(out, **options) as partial:
            partial.write_text(text)
            if fails:
                raise OSError("broken")

    write("one")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write("two")
    with pytest.raises(OSError, match="broken"):
        write("two", fails=True, overwrite=True)
    assert out.read_text() == "one"
    write("two", overwrite=True)
    assert out.read_text() == "two"
    assert [p.name for p in out.parent.iterdir()] == ["file.txt"]


def test_older_clients_find_what_they_look_for(exported):
    """diffusers 0.32 with transformers 4 reads vocab.json and merges.txt, and weights below text_model."""
    vocabulary = json.loads((exported / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == build_pipe().tokenizer.get_vocab()
    assert (exported / "tokenizer" / "merges.txt").read_text().startswith("#version: 0.2\n")
    names = load_file(exported / "text_encoder" / "model.safetensors")
    assert names
    assert all(name.startswith("text_model.") for name in names)
    ours, theirs = (pipe.text_encoder.state_dict() for pipe in (build_pipe(), load(exported)))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert weights_sha256(exported) == weights_sha256(build_pipe())


def test_the_merges_of_a_real_vocabulary_are_written_one_a_line(tmp_path):
    tokenizer = sd21_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    add_vocabulary(tmp_path)
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 49_408 - 2 * 256 - 2
    assert lines[1:3] == ["i n", "t h"]
