"""A model opened with its images: what it takes for truth, and the record that belongs to it and to no other."""

import hashlib
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from basinguard.calibration.lessons import truth_of
from basinguard.core.recorded_weights import RecordedSchedule, RecordedWeights
from basinguard.curation.folder import read_folder
from basinguard.exports.directory import export_directory
from basinguard.exports.merge import merged
from basinguard.guidance.core import from_record
from basinguard.pipelines.evaluation import evaluate
from basinguard.pipelines.session_settings import SessionSettings
from basinguard.sessions.session import open_export, open_model, require_same, sampling_of
from basinguard.sessions.verification import GUARDED, verify_session
from basinguard.similarity.copy_detector_settings import CopyDetectorSettings
from basinguard.tinyworld.scenes import all_captions, draw_scene
from support.exports import build_pipe, build_record


def test_heldout_images_are_truth_but_never_training_images(tiny_pipeline_dir, scene_folder, tmp_path):
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    for k, caption in enumerate(all_captions()[-4:]):
        draw_scene(caption, seed=100 + k).save(heldout / f"{k}.png")
        (heldout / f"{k}.txt").write_text(str(caption))
    settings = SessionSettings(scale=3.0, timesteps=3, heldout=heldout)
    training = open_model(str(tiny_pipeline_dir), scene_folder, settings).guard.training
    truth = truth_of(training, ())
    assert truth.prompts == training.heldout == tuple(map(str, all_captions()[-4:]))
    assert truth.images is training.heldout_images
    (heldout / "0.png").write_bytes((scene_folder / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"0\.png: is a training image as well"):
        open_model(str(tiny_pipeline_dir), scene_folder, settings)


def test_a_manifest_says_which_images_a_model_is_asked_about(tiny_pipeline_dir, scene_folder, tmp_path):
    """What `audit`, `calibrate` and `verify` open: kept images alone, with their hashes."""
    kept_items = read_folder(scene_folder).items[1:3]
    hashes = tuple(hashlib.sha256(item.path.read_bytes()).hexdigest() for item in kept_items)
    rows = [
        {"file_name": item.file_name, "text": item.caption, "captions": [item.caption], "repeats": 1,
         "image_sha256": digest, "caption_sha256": hashlib.sha256(json.dumps([item.caption]).encode()).hexdigest()}
        for item, digest in zip(kept_items, hashes, strict=True)
    ]  # fmt: skip
    (tmp_path / "kept.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = SessionSettings(scale=3.0, timesteps=3, manifest=str(tmp_path / "kept.jsonl"))
    session = open_model(str(tiny_pipeline_dir), scene_folder, settings)
    assert session.files == tuple(item.file_name for item in kept_items)
    assert session.guard.training.image_sha256 == hashes
    kept_items[0].path.write_bytes(kept_items[1].path.read_bytes())
    with pytest.raises(ValueError, match="another image than when the manifest was written"):
        open_model(str(tiny_pipeline_dir), scene_folder, settings)


def test_a_record_of_another_model_is_refused(tiny_pipeline_dir, scene_folder):
    session = open_model(str(tiny_pipeline_dir), scene_folder)
    record = build_record(session.pipe)
    require_same(record, session)
    other = open_model(str(tiny_pipeline_dir), scene_folder)
    other.pipe.unet.conv_out.bias.data += 1
    with pytest.raises(ValueError, match="the record was made for weights"):
        require_same(build_record(other.pipe), session)


def test_an_export_is_sampled_as_its_record_says_unless_told_otherwise():
    record = build_record(build_pipe())
    usual, asked = SessionSettings(), SessionSettings(timesteps=7, scale=2.0)
    taken = sampling_of(usual, record)
    assert (taken.timesteps, taken.scale) == (record.sampler.timesteps, record.sampler.scale)
    assert sampling_of(asked, record) is asked
    assert sampling_of(usual, None) is usual


def test_a_strength_by_timestep_is_verified_as_it_ships_and_opened_no_other_way(
    tiny_pipeline_dir, scene_folder, tmp_path
):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=64, target_modules=["to_v", "conv1"], init_lora_weights=False))
    record = build_record(merged(pipe))
    schedule = RecordedSchedule(transitions=(300.0,), strengths=(0.0, 1.0))
    changes = {
        "product": RecordedWeights(kind="lora", strength_schedule=schedule),
        "base": str(tiny_pipeline_dir),
        "sampler": record.sampler.model_copy(update={"resolution": 32, "timesteps": 2}),
        "history": (),
    }
    out = export_directory(pipe, record.model_copy(update=changes), tmp_path / "model", share_private=True)
    with pytest.raises(ValueError, match="strength of its LoRA depends on the timestep"):
        open_model(str(out), scene_folder)
    exported, session = open_export(out, scene_folder, CopyDetectorSettings())
    rows = verify_session(exported, session, per_caption=1).rows
    as_shipped, _ = evaluate(pipe, session.guard, exported, per_caption=1)
    by_rule_alone, _ = evaluate(pipe, session.guard, from_record(exported.model_dump()), per_caption=1)
    assert rows[GUARDED].similarities == as_shipped.similarities != by_rule_alone.similarities
