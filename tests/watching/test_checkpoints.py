"""What an output folder holds, told by names and headers as the trainers document them."""

import json
from pathlib import Path

import pytest
import torch

from basinguard.watching.checkpoints import is_as_described, scan
from basinguard.watching.unet_files import unet_files
from support.checkpoint_files import KOHYA, PEFT, UP, saved

SAVED = [  # the fifth is ai-toolkit's
    ("ink-000002.safetensors", KOHYA, {"ss_steps": "40", "ss_epoch": "2"}, "lora", 40, 2),  # sd-scripts, by epochs
    ("ink-000003.safetensors", KOHYA, {}, "lora", None, 3),  # the same with --no_metadata
    ("ink-step00000400.safetensors", KOHYA, {}, "lora", 400, None),  # sd-scripts, by steps
    ("checkpoint-500/pytorch_lora_weights.safetensors", PEFT, {}, "lora", 500, None),  # diffusers, SimpleTuner
    ("cat/cat_000000250.safetensors", PEFT, {"training_info": '{"step": 250, "epoch": 0}'}, "lora", 250, None),
    ("save/2026-01-02_03-04-05-save-90-2-10.safetensors", KOHYA, {}, "lora", 90, 3),  # OneTrainer: step-epoch-step
    ("ink.safetensors", KOHYA, {"ss_steps": "60", "ss_epoch": "3"}, "lora", 60, 3),  # sd-scripts, the end
    ("whole.safetensors", {"model.diffusion_model.x": UP}, {}, "single-file", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensors", "metadata", "kind", "step", "epoch"), SAVED, ids=[s[0] for s in SAVED])
def test_each_trainer_is_told_by_its_names_and_headers(tmp_path, name, tensors, metadata, kind, step, epoch):
    path = saved(tmp_path / name, tensors, metadata)
    (checkpoint,) = scan(tmp_path).checkpoints
    assert (checkpoint.path, checkpoint.kind, checkpoint.train_step, checkpoint.epoch) == (path, kind, step, epoch)


def test_they_come_in_the_order_of_the_run_whenever_they_were_written(tmp_path):
    for step in (900, 1000, 80):
        saved(tmp_path / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors", PEFT)
    saved(tmp_path / "pytorch_lora_weights.safetensors", PEFT)
    assert [c.train_step for c in scan(tmp_path).checkpoints] == [80, 900, 1000, None]


def test_folders_with_a_whole_model_or_unet_are_one_checkpoint(tmp_path):
    unet = saved(tmp_path / "checkpoint-7" / "unet" / "diffusion_pytorch_model.safetensors", {"x": UP}).parents[1]
    model = saved(tmp_path / "end" / "vae" / "diffusion_pytorch_model.safetensors", {"x": UP}).parents[1]
    (model / "model_index.json").write_text(json.dumps({}))
    assert [(c.path, c.kind, c.train_step) for c in scan(tmp_path).checkpoints] == [
        (unet, "unet", 7), (model, "model", None)
    ]  # fmt: skip


WEIGHTS = "diffusion_pytorch_model"
PARTS = [
    [f"{WEIGHTS}.fp16.safetensors"],
    [f"{WEIGHTS}-00001-of-00002.safetensors", f"{WEIGHTS}-00002-of-00002.safetensors"],
    [f"{WEIGHTS}.fp16-00001-of-00002.safetensors", f"{WEIGHTS}.fp16-00002-of-00002.safetensors"],
    [f"{WEIGHTS}-00001-of-00002.fp16.safetensors", f"{WEIGHTS}-00002-of-00002.fp16.safetensors"],
]


@pytest.mark.parametrize("names", PARTS, ids=lambda names: names[0])
def test_a_unet_in_parts_or_in_half_precision_is_read_once_it_is_whole(tmp_path, names):
    folder = tmp_path / "checkpoint-7"
    for name in names:
        assert not unet_part_is_whole(tmp_path)
        saved(folder / "unet" / name, {"x": UP})
    (checkpoint,) = scan(tmp_path).checkpoints
    assert (checkpoint.path, checkpoint.kind, checkpoint.train_step) == (folder, "unet", 7)
    assert [path.name for path in unet_files(folder)] == names


def unet_part_is_whole(folder):
    scanned = scan(folder)
    assert all("1 of 2 parts are there" in reason for reason in scanned.partial.values())
    return bool(scanned.checkpoints)


def test_full_precision_is_read_where_there_are_both(tmp_path):
    for name in (f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.non_ema.safetensors", f"{WEIGHTS}.safetensors"):
        saved(tmp_path / "unet" / name, {"x": UP})
    assert [path.name for path in unet_files(tmp_path)] == [f"{WEIGHTS}.safetensors"]


def test_a_last_model_above_its_checkpoints_is_one_and_they_are_others(tmp_path):
    """As diffusers' scripts save it; what the watch itself writes below changes nothing about it."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "unet": [], "vae": []}))
    for folder in (tmp_path, tmp_path / "checkpoint-5"):
        saved(folder / "unet" / f"{WEIGHTS}.safetensors", {"x": UP})
    first, last = scan(tmp_path, tmp_path / "basinguard").checkpoints
    assert [(c.kind, c.path.name) for c in (first, last)] == [("unet", "checkpoint-5"), ("model", tmp_path.name)]
    saved(tmp_path / "basinguard" / "state.safetensors", KOHYA)
    assert scan(tmp_path, tmp_path / "basinguard").checkpoints == (first, last)


def test_the_file_that_says_alpha_is_read_and_not_the_state_beside_it(tmp_path):
    saved(tmp_path / "checkpoint-3" / "model.safetensors", {**PEFT, "x.base_layer.weight": UP})
    lora = saved(tmp_path / "checkpoint-3" / "pytorch_lora_weights.safetensors", PEFT)
    assert [c.path for c in scan(tmp_path).checkpoints] == [lora]


def test_states_of_accelerate_with_a_whole_unet_or_with_several_models(tmp_path):
    saved(tmp_path / "checkpoint-3" / "model.safetensors", {"conv_in.weight": UP})
    two = saved(tmp_path / "checkpoint-4" / "model.safetensors", PEFT)
    saved(two.with_name("model_1.safetensors"), PEFT)
    scanned = scan(tmp_path)
    assert [(c.kind, c.train_step) for c in scanned.checkpoints] == [("unet", 3)]
    assert list(scanned.partial) == [two]
    assert "could only be measured in part" in scanned.partial[two]


def test_a_state_of_accelerate_with_the_whole_unet_is_a_lora_in_it(tmp_path):
    saved(tmp_path / "checkpoint-3" / "model.safetensors", {**PEFT, "x.base_layer.weight": UP})
    (checkpoint,) = scan(tmp_path).checkpoints
    assert (checkpoint.kind, checkpoint.train_step) == ("lora-in-unet", 3)


def test_a_half_written_file_waits_and_what_is_no_checkpoint_is_left_alone(tmp_path):
    half = saved(tmp_path / "half.safetensors", KOHYA)
    half.write_bytes(half.read_bytes()[:-8])
    for name in ("optimizer.safetensors", "latents.safetensors", "checkpoint-4/ema/x.safetensors"):
        saved(tmp_path / name, KOHYA if "ema" in name else {"x": UP})
    saved(tmp_path / "basinguard" / "state.safetensors", KOHYA)
    scanned = scan(tmp_path, tmp_path / "basinguard")
    assert scanned.checkpoints == ()
    assert "ends too early" in scanned.partial[half]
    assert scan(tmp_path / "nowhere").checkpoints == ()


def test_a_file_that_is_written_anew_is_another_checkpoint(tmp_path):
    path = saved(tmp_path / "a.safetensors", KOHYA)
    (first,) = scan(tmp_path).checkpoints
    assert is_as_described(first)
    saved(path, {**KOHYA, "lora_unet_x.alpha": torch.tensor(1.0)})
    assert scan(tmp_path).checkpoints[0].key != first.key
    assert not is_as_described(first)
    path.unlink()
    assert not is_as_described(first)


def test_a_folder_that_is_deleted_meanwhile_is_passed_over(tmp_path, monkeypatch):
    """Trainers delete their oldest checkpoint whenever they like; here between being seen and being looked into."""
    for step in (1, 2):
        saved(tmp_path / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors", PEFT)
    entries = Path.iterdir

    def iterdir(folder):
        if folder.name == "checkpoint-1":
            raise FileNotFoundError(folder)
        return entries(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert [c.train_step for c in scan(tmp_path).checkpoints] == [2]


def test_checkpoints_that_could_run_code_are_told_of_and_not_opened(tmp_path):
    names = ("a.ckpt", "a-000002.pt", "checkpoint-3/pytorch_lora_weights.bin")
    for name in (*names, "checkpoint-3/optimizer.bin", "checkpoint-3/scaler.pt", "a.pth", "training_args.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    partial = scan(tmp_path).partial
    assert {path.relative_to(tmp_path).as_posix() for path in partial} == set(names)
    assert all("have the trainer save safetensors" in reason for reason in partial.values())
