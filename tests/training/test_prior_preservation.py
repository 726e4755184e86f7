"""Prior preservation: the base model's own pictures, their loss, and where they are stored."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from basinguard.training import prior_preservation
from basinguard.training.finetune_options import LossOptions
from basinguard.training.prior_preservation import PriorSamples, drawn, prior_samples
from support.fine_tunes import fine_tune, image_folder

PRIOR = {"prior_weight": 0.5, "prior_images": 3, "prior_captions": ("a cup", "a tree"), "prior_scale": 2.0}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(prior_preservation, "PRIOR_TIMESTEPS", 2)


def make_batch():
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"pixel_values": pixels, "caption": ["a ball", "a box", "a star"], "index": torch.arange(3)}


def fit(base, folder, root, *, epochs=1, ckpt_path=None, **options):
    model = fine_tune(base, rank=2, learning_rate=1e-2, **PRIOR, **options)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(model, image_folder(str(folder), resolution=32, batch_size=4), ckpt_path=ckpt_path)
    return model, trainer


def test_the_loss_counts_the_base_models_pictures_by_their_weight(tiny_pipeline_dir):
    """Written out with diffusers' schedule: error of one noisy picture, times 0.5, beside the usual loss."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    model = fine_tune(tiny_pipeline_dir, method="full", **PRIOR)
    torch.manual_seed(5)
    usual = model.loss(make_batch())  # the pictures are drawn when a fit starts: none yet
    torch.randint(1, (2,))  # which pictures: half a batch of three, rounded up
    noise, times = torch.randn(2, 4, 16, 16), torch.randint(0, 1000, (2,))
    schedule, both = model.forward_process.schedule, latents.expand(2, -1, -1, -1)
    hidden = model.encode_captions(["a cup", "a cup"]).texts["encoder_hidden_states"]
    prediction = model.unet(schedule.add_noise(both, noise, times), times, hidden).sample
    expected = usual + 0.5 * F.mse_loss(prediction, schedule.get_velocity(both, noise, times))
    model.prior = PriorSamples(latents, ("a cup",))
    torch.manual_seed(5)
    torch.testing.assert_close(model.loss(make_batch()), expected)


def test_every_caption_is_drawn_equally_often_and_each_time_the_same(tiny_pipeline_dir):
    model = fine_tune(tiny_pipeline_dir, method="full")
    options = LossOptions(**PRIOR)
    first, second = (drawn(model.pipe, options, 32) for _ in range(2))
    assert first.captions == ("a cup", "a cup", "a tree", "a tree")
    assert torch.equal(first.latents, second.latents)
    assert first.latents.shape == (4, 4, 16, 16)
    assert len({row.numpy().tobytes() for row in first.latents}) == 4


def test_a_run_resumes_bit_for_bit_with_the_stored_pictures(tiny_pipeline_dir, scene_folder, tmp_path, monkeypatch):
    whole, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path / "whole", epochs=2)
    _, trainer = fit(tiny_pipeline_dir, scene_folder, tmp_path / "run")
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    monkeypatch.setattr(prior_preservation, "drawn", None)  # they are there already
    root = tmp_path / "run"
    resumed, _ = fit(tiny_pipeline_dir, scene_folder, root, epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(value, resumed.trained()[name]) for name, value in whole.trained().items())


def samples_of(base, root, **options):
    model = fine_tune(base, rank=2, **{**PRIOR, **options})
    model.trainer = SimpleNamespace(default_root_dir=root, is_global_zero=True)
    return prior_samples(model)


def test_pictures_of_other_options_are_drawn_anew_and_nobody_elses_random_stream_moves(tiny_pipeline_dir, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = samples_of(tiny_pipeline_dir, tmp_path)
    assert torch.equal(torch.rand(1), expected)
    again, stronger = (samples_of(tiny_pipeline_dir, tmp_path, prior_scale=scale) for scale in (2.0, 3.0))
    assert torch.equal(first.latents, again.latents)
    assert first.captions == again.captions
    assert not torch.allclose(first.latents, stronger.latents)
    assert samples_of(tiny_pipeline_dir, tmp_path, prior_weight=0.0) is None
    (tmp_path / prior_preservation.FILE).write_bytes(b"\xff" * 16)  # damaged: drawn again
    assert torch.equal(samples_of(tiny_pipeline_dir, tmp_path).latents, first.latents)


def test_numbers_out_of_range_are_named(tiny_pipeline_dir):
    with pytest.raises(
        ValueError, match=r"prior_weight=-1 \(0 or more\), prior_images=0 \(at least 1\), prior_captions="
    ):
        fine_tune(tiny_pipeline_dir, prior_weight=-1, prior_images=0, prior_captions=(), prior_scale=1.0)
    with pytest.raises(ValueError, match=r"prior_captions=a photo of a dog \(a list, or null\)"):
        fine_tune(tiny_pipeline_dir, prior_captions="a photo of a dog")
