"""The guard in loops of one's own: the accelerate recipe, no framework at all, and Lightning's older name."""

import json
import warnings
from dataclasses import replace

import pytest
import pytorch_lightning
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from basinguard.calibration.terms import CalibrationTerms
from basinguard.core.report import Report
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.lora import add_lora
from basinguard.similarity.colour_texture import ColourTexture
from basinguard.training import guarded_run
from basinguard.training.accelerate import LoopGuard
from basinguard.training.data import ImageFolder
from basinguard.training.pytorch_lightning import MemorizationGuard
from support.fake_pipelines import StableDiffusionPipeline
from support.guarded_runs import CONTROL, PLAN, digest, picture_folder, untimed
from support.recipe_runs import run_recipe
from support.tiny_pipeline import build_tiny_sd3


@pytest.fixture
def pictures(tmp_path):
    return picture_folder(tmp_path / "pictures")


def outcome(directory):
    """Loss curve and weights that a run of the recipe left."""
    return (directory / "losses.json").read_text(), digest(load_file(directory / "pytorch_lora_weights.safetensors"))


@pytest.mark.long  # reliability/test_never_perturbs.py has it of `fit`
def test_the_recipe_trains_the_same_with_and_without_the_guard(tiny_pipeline_dir, pictures, tmp_path):
    guard = run_recipe(tiny_pipeline_dir, pictures, tmp_path / "guarded", "--num_train_epochs=2")
    run_recipe(tiny_pipeline_dir, pictures, tmp_path / "bare", "--num_train_epochs=2", "--no_guard")
    losses, adapters = zip(*(outcome(tmp_path / name) for name in ("guarded", "bare")), strict=True)
    assert losses[0] == losses[1]
    assert adapters[0] == adapters[1]
    assert [(r.epoch, r.train_step, r.problem) for r in guard.history] == [(-1, 0, ""), (0, 2, ""), (1, 4, "")]
    rows = json.loads((tmp_path / "guarded" / "history.json").read_text())
    assert [Report.from_json(json.dumps(row)) for row in rows] == guard.history


@pytest.mark.long
def test_the_recipe_resumes_and_exports(tiny_pipeline_dir, pictures, tmp_path):
    whole = run_recipe(tiny_pipeline_dir, pictures, tmp_path / "whole", "--num_train_epochs=2")
    run_recipe(tiny_pipeline_dir, pictures, tmp_path / "half", "--num_train_epochs=1")
    again = run_recipe(
        tiny_pipeline_dir, pictures, tmp_path / "half", "--num_train_epochs=2", "--resume_from_checkpoint=latest",
        "--export", "--export_pairs=4",
    )  # fmt: skip
    assert untimed(again.history) == untimed(whole.history)
    assert (tmp_path / "half" / "guarded" / "basinguard.json").is_file()


def make_loop_guard(pictures, **settings):
    images = ImageFolder(str(pictures), resolution=32)
    captions = tuple(caption for _, caption in images.items)
    training = TrainingSet(images.all_pixels(), captions, ("a blue box",))
    return LoopGuard(training, plan=PLAN, **settings)


def test_making_a_guard_draws_nothing(pictures, monkeypatch):
    """A network is made with random weights before its own are read: the loop must not notice."""
    monkeypatch.setattr(guarded_run, "feature_sets", lambda: (torch.rand(3), ColourTexture())[1:])
    images = ImageFolder(str(pictures), resolution=32)
    captions = tuple(caption for _, caption in images.items)
    training = TrainingSet(images.all_pixels(), captions, ("a blue box",))
    drawn = torch.get_rng_state()
    guard = LoopGuard(training, plan=replace(PLAN, taught=True))
    assert guard.run.guard.ledger is not None, "nothing was drawn, so nothing was proven"
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize(("scale", "lines"), [(None, 1), (7.0, 0)])
def test_a_guard_without_a_pipeline_says_whose_scale_it_takes(scale, lines):
    training = TrainingSet(torch.rand(2, 3, 64, 64), ("a ball", "a box"), ("a blue box",))
    guard, pipe = LoopGuard(training, plan=replace(PLAN, scale=scale)), build_tiny_sd3()
    guard.run.probe = lambda *given, **more: None
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for epoch in (-1, 0):
            guard.measure(pipe, epoch=epoch)
    assert [str(each.message) for each in shown if "usually" in str(each.message)] == [
        "plain CFG is sampled at scale 7.5, and a StableDiffusion3Pipeline usually at 7: give LoopGuard pipe=..., or "
        "its ProbePlan a scale"
    ] * lines


def test_any_loop_measures_with_one_call_and_state_is_safe_to_load(tiny_pipeline_dir, pictures, tmp_path):
    pipe, guard = load_pipeline(tiny_pipeline_dir), make_loop_guard(pictures)
    pipe.unet.requires_grad_(False)
    add_lora(pipe.unet, rank=2, alpha=2, dropout=0.1, targets=["to_q"])
    pipe.unet.train()
    drawn, weights = torch.get_rng_state(), digest(pipe.unet.state_dict())
    report = guard.measure(pipe, epoch=0, train_step=7)
    assert (report.epoch, report.train_step, report.problem) == (0, 7, "")
    assert guard.measure(pipe, epoch=0, train_step=7) is report, "a second call for the same moment is the first"
    assert torch.equal(drawn, torch.get_rng_state())
    assert digest(pipe.unet.state_dict()) == weights
    assert pipe.unet.training
    torch.save(guard.state_dict(), tmp_path / "state")
    other = make_loop_guard(pictures)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.history == guard.history
    with torch.no_grad():
        trained = next(p for p in pipe.unet.parameters() if p.requires_grad)
        trained += 1
        moved = digest(pipe.unet.state_dict())
    with other.shipped_weights(pipe):
        assert digest(pipe.unet.state_dict()) == weights
    assert digest(pipe.unet.state_dict()) == moved


def test_a_loop_that_fails_goes_on(tiny_pipeline_dir, pictures, tmp_path):
    guard = make_loop_guard(pictures)
    with pytest.warns(UserWarning, match="probe of epoch 4 failed and is missing; training goes on"):
        assert guard.measure(StableDiffusionPipeline(unet=torch.nn.Identity()), epoch=3).samples.risk is None
    with pytest.warns(UserWarning, match="nothing was exported"):
        assert guard.export(load_pipeline(tiny_pipeline_dir), tmp_path / "out", CalibrationTerms(), base="tiny") is None


def test_a_loop_that_trains_on_smaller_images_is_measured_at_their_size(tiny_pipeline_dir, pictures):
    images = ImageFolder(str(pictures), resolution=16)
    captions = tuple(caption for _, caption in images.items)
    guard = LoopGuard(TrainingSet(images.all_pixels(), captions, ("a blue box",)), plan=PLAN, on_error="raise")
    pipe = load_pipeline(tiny_pipeline_dir)
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 32
    assert guard.measure(pipe, epoch=-1).samples.risk is not None


def test_a_script_that_holds_modules_needs_five_lines(tiny_pipeline_dir, pictures):
    parts = load_pipeline(tiny_pipeline_dir)
    noise = DDPMScheduler.from_config(parts.scheduler.config)
    modules = parts.unet, parts.vae, parts.text_encoder, parts.tokenizer, noise
    paths = sorted(pictures.glob("*.png"))
    texts = [path.with_suffix(".txt").read_text() for path in paths]
    guard = LoopGuard.for_script(*modules, images=paths, captions=texts, plan=PLAN)
    assert guard.measure(guard.pipe, epoch=-1).problem == ""
    assert torch.equal(guard.run.guard.training.images, ImageFolder(str(pictures), resolution=32).all_pixels())
    with pytest.raises(ValueError, match=r"pixels between -1 and 1, expected RGB in 0..1; \(x \+ 1\) / 2 undoes"):
        LoopGuard.for_script(*modules, images=torch.tensor([-1.0, 1.0]).expand(1, 3, 32, 2), captions=["a"])


class Plain(pytorch_lightning.LightningModule):
    """A module of somebody's own, under the older import name."""

    def __init__(self, base):
        super().__init__()
        self.pipe = load_pipeline(base)
        self.unet = self.pipe.unet

    def training_step(self, batch, batch_idx):
        return sum(p.square().mean() for p in self.unet.parameters())

    def configure_optimizers(self):
        return torch.optim.SGD(self.unet.parameters(), lr=0.1)


class Data(pytorch_lightning.LightningDataModule):
    def __init__(self, pictures):
        super().__init__()
        images = ImageFolder(str(pictures), resolution=32)
        self.items, self.all_pixels = images.items, images.all_pixels

    def train_dataloader(self):
        return torch.utils.data.DataLoader([0, 1], batch_size=1)


def test_the_older_import_name_works(tiny_pipeline_dir, pictures, tmp_path):
    guard = MemorizationGuard(PLAN, CONTROL, alignment="none", on_error="raise")
    trainer = pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[guard],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Plain(tiny_pipeline_dir), datamodule=Data(pictures))
    assert [report.epoch for report in guard.history] == [-1, 0]
    assert "guard/gap" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    assert torch.load(tmp_path / "all.ckpt", weights_only=True)["callbacks"]["MemorizationGuard"]["guard"]
