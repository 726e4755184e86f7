"""Checkpoints measured from outside give what a guard in the trainer measured, to the digit."""

import io
import json
import os
import sys
from dataclasses import replace

import pytest
import torch

from basinguard.core.report import Report
from basinguard.exports.original_layout import original_state
from basinguard.guard.plan import ProbePlan
from basinguard.guard.status import read_history
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.watching.checkpoint_pipeline import opened
from basinguard.watching.checkpoints import scan
from basinguard.watching.measuring import CheckpointProbes, measure_request
from basinguard.watching.probe_process import REFUSED
from basinguard.watching.request import EVENTS, PAGE, STATE, WatchRequest, events_of
from basinguard.watching.training_images import training_of
from basinguard.watching.watcher import event_text
from support.checkpoint_files import KOHYA, saved
from support.guarded_runs import picture_folder, untimed
from support.recipe_runs import run_recipe
from support.tiny_pipeline import build_tiny_sd3, build_tiny_xl

PLAN = ProbePlan(captions=2, timesteps=2)  # as the recipe is asked for


@pytest.fixture(scope="module")
def run(tiny_pipeline_dir, tmp_path_factory):
    """A run of the accelerate recipe with the guard inside, and the request to watch it."""
    root = tmp_path_factory.mktemp("watched")
    data, out = picture_folder(root / "pictures"), root / "out"
    run_recipe(tiny_pipeline_dir, data, out, "--num_train_epochs=2")
    prompts = root / "prompts.txt"
    prompts.write_text("a blue box\n\n")
    return WatchRequest(out, data, str(tiny_pipeline_dir), prompts=prompts, plan=PLAN)


def measured(request, checkpoints):
    request.folder.mkdir(exist_ok=True)
    probes = CheckpointProbes(request)
    probes.take_up()
    for checkpoint in checkpoints:
        probes.measure(checkpoint)
    return [(event["checkpoint"], event["event"], event.get("problem", "")) for event in events_of(request.folder)]


def test_the_reports_are_those_of_the_guard_inside_also_after_an_interruption(run):
    first, second, last = scan(run.output).checkpoints
    measured(run, [first])
    lines = (run.folder / EVENTS).read_text().splitlines(keepends=True)
    (run.folder / EVENTS).write_text("".join([*lines[:-1], lines[-1][:50]]))  # killed while it wrote the line
    events = measured(run, [first, second, last])
    rows = json.loads((run.output / "history.json").read_text())
    assert untimed(read_history(run.folder / "guard.json")) == untimed([Report.from_json(json.dumps(r)) for r in rows])
    assert [(name, what) for name, what, _ in events] == [
        ("the base model", "measured"), ("checkpoint-2/model.safetensors", "measured"),
        ("checkpoint-4/model.safetensors", "measured"), ("out/pytorch_lora_weights.safetensors", "skipped"),
    ]  # fmt: skip
    assert events[-1][2] == "the same weights as checkpoint-4/model.safetensors"
    page = (run.folder / PAGE).read_text("utf-8")
    assert "epoch 2 is the one to ship" in page
    assert "http" not in page.split("<main>")[1].replace("data:image", "")
    assert list((run.folder / "tensorboard").iterdir())


def test_what_cannot_be_measured_is_one_event_and_the_rest_goes_on(run, tmp_path):
    """Of another base, deleted meanwhile, good, one that lies behind it, and one written anew since it was found."""
    request = replace(run, output=tmp_path, plan=replace(PLAN, taught=False))
    other = saved(tmp_path / "a-step00000001.safetensors", KOHYA)
    gone = saved(tmp_path / "b-step00000002.safetensors", {**KOHYA, "lora_unet_y.alpha": torch.tensor(1.0)})
    for step, name in ((5, "checkpoint-2"), (3, "checkpoint-4"), (7, "checkpoint-4")):
        path = tmp_path / f"checkpoint-{step}" / "model.safetensors"
        path.parent.mkdir()
        path.write_bytes((run.output / name / "model.safetensors").read_bytes())
    first, second, behind, good, anew = scan(tmp_path).checkpoints
    os.utime(anew.path, ns=(1, 1))
    gone.unlink()
    events = measured(request, [first, second, good, behind, anew])
    assert [what for _, what, _ in events] == ["measured", "failed", "failed", "measured", "skipped", "waits"]
    assert str(other) in events[1][2]
    assert "No such file" in events[2][2]
    assert events[4][2] == (
        "at update 3 is no further than what was measured last (5); where this is another run, move "
        f"{request.folder} elsewhere"
    )
    assert events[5][2] == "was written anew or deleted while it was read"
    assert not any("\n" in problem for _, _, problem in events)


@pytest.mark.filterwarnings("ignore:the history so far is about other images")
def test_another_base_other_images_or_settings_are_refused_for_what_was_begun_with_others(run, tmp_path):
    measured(run, [])
    other = picture_folder(tmp_path / "other", 3)
    for changes, message in (
        ({"base": "tinyworld"}, "base='tinyworld': what was measured here so far is of "),
        ({"data": other}, "is of other images"),
        ({"plan": replace(PLAN, scale=3.0)}, "scale was 7.5, is 3.0"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*to begin anew"):
            CheckpointProbes(replace(run, **changes)).take_up()


def test_a_breach_is_told_before_exits_are_searched_for(run, tmp_path, monkeypatch):
    """Whatever is drawn counts as a copy here, but of the base model's."""
    request = replace(run, output=tmp_path, plan=replace(PLAN, captions=4, seeds=4, taught=False))
    measured(request, [])
    monkeypatch.setattr(CopyDetector, "copied", lambda self, matches: torch.ones(len(matches), dtype=torch.bool))
    measured(request, scan(run.output).checkpoints[:1])
    base, early, whole = events_of(request.folder)
    assert [event["event"] for event in (base, early, whole)] == ["measured", "early", "measured"]
    assert early["breach"]
    assert early["risk"] == whole["risk"]
    assert (early["width"], "key" in early) == (None, False)
    assert event_text(early).startswith("checkpoint-2/model.safetensors: memorizing, risk 1.00 [")
    assert event_text(early).endswith("its basin is measured now")


def test_images_come_from_every_folder_that_the_trainer_reads(run, tmp_path):
    parts = [picture_folder(tmp_path / name, count) for name, count in (("a", 3), ("b", 2))]
    concepts = tmp_path / "concepts.json"
    concepts.write_text(json.dumps([{"path": str(part)} for part in parts]))
    training = training_of(replace(run, data=concepts), 32)
    assert training.captions == ("a ball 0", "a ball 1", "a ball 2", "a ball 0", "a ball 1")
    assert training.images.shape == (5, 3, 32, 32)
    assert training.heldout == ("a blue box",)


@pytest.mark.parametrize("half", [False, True])
def test_a_unet_in_parts_and_its_text_encoder_are_read_as_they_were_trained(run, tmp_path, half):
    """Saved by diffusers and transformers: parts of 100 kB, in half precision in the second case."""
    pipe = load_pipeline(run.base)
    for part in (pipe.unet, pipe.text_encoder):
        for parameter in part.parameters():
            parameter.data += 0.5
    unet = pipe.unet.half() if half else pipe.unet
    unet.save_pretrained(tmp_path / "checkpoint-5" / "unet", max_shard_size="100KB", variant="fp16" if half else None)
    pipe.text_encoder.save_pretrained(tmp_path / "checkpoint-5" / "text_encoder")
    (checkpoint,) = scan(tmp_path).checkpoints
    loaded = opened(checkpoint, run.base)
    for ours, theirs in ((loaded.unet, unet.float()), (loaded.text_encoder, pipe.text_encoder)):
        right = theirs.state_dict()
        assert all(torch.equal(weight, right[name]) for name, weight in ours.state_dict().items())
    parts = sorted((tmp_path / "checkpoint-5" / "unet").glob("*.safetensors"))
    assert len(parts) > 1
    parts[0].unlink()
    with pytest.raises(ValueError, match=f"{len(parts) - 1} of {len(parts)} parts are there"):
        opened(checkpoint, run.base)


def test_a_whole_fine_tune_in_one_file_takes_the_bases_place(run, tmp_path):
    pipe = load_pipeline(run.base)
    for part in (pipe.unet, pipe.text_encoder):
        for parameter in part.parameters():
            parameter.data += 0.5
    state = {name: weight.contiguous() for name, weight in original_state(pipe, second=False).items()}
    saved(tmp_path / "model-step00000005.safetensors", state)
    (checkpoint,) = scan(tmp_path).checkpoints
    loaded = opened(checkpoint, run.base)
    for ours, theirs in ((loaded.unet, pipe.unet), (loaded.text_encoder, pipe.text_encoder)):
        right = theirs.state_dict()
        assert all(torch.equal(weight, right[name]) for name, weight in ours.state_dict().items())


def test_xl_is_watched(run, tmp_path):
    """A LoRA of both text encoders and the UNet, as sd-scripts names them."""
    base, output = tmp_path / "base", tmp_path / "out"
    build_tiny_xl().save_pretrained(base)
    te2, unet = (
        "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
    )
    shapes = {f"{te2}.lora_down.weight": (2, 48), f"{te2}.lora_up.weight": (37, 2)}
    shapes |= {f"{unet}.lora_down.weight": (2, 32), f"{unet}.lora_up.weight": (32, 2)}
    saved(output / "cat-000001.safetensors", {name: torch.ones(shape) for name, shape in shapes.items()})
    request = replace(run, output=output, base=str(base), plan=replace(PLAN, taught=False))
    assert measured(request, scan(output).checkpoints) == [
        ("the base model", "measured", ""), ("cat-000001.safetensors", "measured", "")
    ]  # fmt: skip


def test_sd3_is_watched_and_a_distilled_base_is_told_of(run, tmp_path):
    base, output = tmp_path / "sd3-turbo", tmp_path / "out"
    build_tiny_sd3().save_pretrained(base)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
    saved(output / "cat-000001.safetensors", factors)
    request = replace(run, output=output, base=str(base), plan=replace(PLAN, taught=False))
    (who, what, problem), *events = measured(request, scan(output).checkpoints)
    assert (who, what) == ("the base model", "note")
    assert "guidance-distilled: it has no unconditional branch" in problem
    assert events == [("the base model", "measured", ""), ("cat-000001.safetensors", "measured", "")]


def test_another_unet_is_refused_in_one_line(run, tmp_path):
    saved(tmp_path / "checkpoint-5" / "model.safetensors", {"conv_in.weight": torch.zeros(1)})
    (checkpoint,) = scan(tmp_path).checkpoints
    with pytest.raises(ValueError, match=r"its UNet has other layers than that of .*; give its own base"):
        opened(checkpoint, run.base)


def test_a_full_disk_ends_a_probe_in_one_line(run, tmp_path, monkeypatch, capsys):
    """The events go to a device without space; what was measured before is there and is to be written down."""
    measured(run, [])
    request = replace(run, output=tmp_path)
    request.folder.mkdir()
    (request.folder / STATE).write_bytes((run.folder / STATE).read_bytes())
    (request.folder / EVENTS).symlink_to("/dev/full")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{request.to_json()}\n[]\n"))
    with pytest.raises(SystemExit) as end:
        measure_request()
    assert end.value.code == REFUSED
    assert capsys.readouterr().err.strip().splitlines()[-1] == "[Errno 28] No space left on device"
