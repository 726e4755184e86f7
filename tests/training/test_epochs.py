"""Epochs on disk: whole, bounded, spread over the run, and back as they were."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from basinguard.calibration.terms import CalibrationTerms
from basinguard.diffusion.sampling import EMPTY
from basinguard.guidance.strength import StrengthSchedule, scheduled
from basinguard.pipelines.latent_model import LatentModel
from basinguard.training import epoch_archive
from basinguard.training.epoch_archive import EpochArchive, StoredEpoch, redundant, stored_bytes
from basinguard.training.epoch_series import EpochSeries, origin_weights, require_lora_to_schedule
from basinguard.training.protocols import PipelineInTraining
from support.tiny_pipeline import build_tiny_sd3


def weights(value):
    return {"a": torch.full((2, 3), value), "b": torch.arange(4.0) * value}


def test_adapters_come_back_to_the_bit_and_differences_within_half_precision(tmp_path):
    archive, base = EpochArchive(tmp_path / "epochs", 4), weights(1.0)
    archive.store(0, 10, weights(1.1), None)
    assert all(torch.equal(archive.weights(0, None)[k], w) for k, w in weights(1.1).items())
    archive.store(1, 20, weights(1.1), base)
    for key, weight in archive.weights(1, base).items():
        torch.testing.assert_close(weight - base[key], weights(1.1)[key] - base[key], rtol=2**-10, atol=1e-6)
    sizes = [entry.path.stat().st_size for entry in archive.stored()]
    assert sizes[0] - sizes[1] >= 10 * 2 - 8, "ten numbers of half the size"
    assert (stored_bytes(base, differences=True), stored_bytes(base, differences=False)) == (20, 40)


def test_the_epochs_that_stay_are_spread_over_the_run_and_the_newest_is_one(tmp_path):
    archive = EpochArchive(tmp_path / "epochs", 4)
    for epoch in range(12):
        archive.store(epoch, 100 * (epoch + 1), weights(1.0), None, protected={2})
        assert len(archive.stored()) <= 4
        assert archive.stored()[-1].epoch == epoch
    epochs = [entry.epoch for entry in archive.stored()]
    assert epochs[0] == 0
    assert 2 in epochs
    assert any(4 <= epoch <= 8 for epoch in epochs), "one from the middle"


def test_the_most_redundant_epoch_is_never_the_newest(tmp_path):
    crowded = [StoredEpoch(step, k, tmp_path) for k, step in enumerate((100, 400, 900, 901))]
    assert redundant(crowded, ()).epoch == 2
    assert redundant(crowded, (0, 1, 2)).epoch == 2, "there is nothing else to drop"


def test_nothing_half_written_stays_and_no_file_of_the_users_goes(tmp_path, monkeypatch):
    folder = tmp_path / "epochs"
    archive = EpochArchive(folder, 1)
    archive.store(0, 10, weights(1.0), None)
    (folder / "epoch-mine.safetensors").write_bytes(b"mine")
    with monkeypatch.context() as full:
        full.setattr(epoch_archive, "save_file", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            archive.store(1, 20, weights(2.0), None)
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch-00000-update-00000010.safetensors",
        "epoch-mine.safetensors",
    ]
    archive.forget_after(5)
    assert [path.name for path in folder.iterdir()] == ["epoch-mine.safetensors"]


def opened(directory, scale=1.0):
    pipe = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    pipe.unet.conv_in.weight.data.mul_(scale)
    return pipe


def test_a_series_gives_every_epoch_and_share_and_leaves_no_trace(tiny_pipeline_dir):
    base, pipe = opened(tiny_pipeline_dir), opened(tiny_pipeline_dir, 3.0)
    module = PipelineInTraining(pipe, str(tiny_pipeline_dir))
    origin = origin_weights(module, base)
    assert torch.equal(origin["unet.conv_in.weight"], base.unet.conv_in.weight)
    doubled = {name: 2 * w if name == "unet.conv_in.weight" else w for name, w in origin.items()}
    own = pipe.unet.conv_in.weight.clone()
    with EpochSeries(module, {4: lambda: doubled, 9: lambda: None}, base) as series:
        assert (series.epochs, series.graded) == ((4, 9), True)
        for epoch, strength, factor in ((4, 1.0, 2.0), (4, 0.5, 1.5), (9, 1.0, 3.0), (9, 0.0, 1.0), (4, 0.5, 1.5)):
            with series.at(epoch, strength) as open_weights:
                torch.testing.assert_close(
                    open_weights.model.pipe.unet.conv_in.weight, factor * base.unet.conv_in.weight
                )
    assert torch.equal(pipe.unet.conv_in.weight, own)


SCHEDULE = StrengthSchedule((800.0, 300.0), (0.0, 0.5, 1.0))


def test_a_series_gives_strengths_by_timestep_as_the_lora_of_that_epoch_does(tiny_pipeline_dir):
    base, pipe = opened(tiny_pipeline_dir), opened(tiny_pipeline_dir)
    torch.manual_seed(0)
    pipe.text_encoder.requires_grad_(False)
    pipe.unet.requires_grad_(False).add_adapter(
        LoraConfig(r=2, lora_alpha=16, target_modules=["to_q", "conv1"], init_lora_weights=False)
    )
    module = PipelineInTraining(pipe, str(tiny_pipeline_dir))
    require_lora_to_schedule(module, CalibrationTerms(strength_schedules=(SCHEDULE,)))
    trained = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    earlier = {name: weight / 2 for name, weight in trained.items()}
    x, prompt, timesteps = torch.randn(3, 4, 16, 16), torch.tensor([0, EMPTY, 0]), torch.tensor([900.0, 500.0, 300.0])
    with torch.no_grad(), EpochSeries(module, {4: lambda: earlier, 9: lambda: None}, base) as series:
        with series.scheduled(4, SCHEDULE) as open_weights:
            blended = open_weights.model.denoiser(["a"])(x, timesteps, prompt)
        with series.unmerged(4) as apart, scheduled(apart.unet, SCHEDULE):
            live = LatentModel(apart).denoiser(["a"])
            each = [live(x[k : k + 1], timesteps[k : k + 1], prompt[k : k + 1]) for k in range(3)]
        torch.testing.assert_close(blended, torch.cat(each), rtol=1e-4, atol=1e-4)
        with series.scheduled(9, SCHEDULE) as open_weights:
            newest = open_weights.model.denoiser(["a"])(x, timesteps, prompt)
    assert torch.equal(blended[:1], newest[:1]), "above the first transition both are the base model"
    assert not torch.allclose(blended[1:], newest[1:], atol=1e-2)
    assert all(torch.equal(trained[name], p) for name, p in module.named_parameters() if name in trained)


def test_strengths_by_timestep_of_whole_weights_are_refused_before_training(tiny_pipeline_dir):
    module, terms = PipelineInTraining(opened(tiny_pipeline_dir), ""), CalibrationTerms(strength_schedules=(SCHEDULE,))
    with pytest.raises(ValueError, match="need a LoRA, and whole weights are trained"):
        require_lora_to_schedule(module, terms)
    require_lora_to_schedule(module, CalibrationTerms())


def test_strengths_by_timestep_of_a_flow_are_refused_before_training():
    module, terms = PipelineInTraining(build_tiny_sd3(), ""), CalibrationTerms(strength_schedules=(SCHEDULE,))
    with pytest.raises(ValueError, match="strength_schedules: no directory with an unmerged LoRA of"):
        require_lora_to_schedule(module, terms)
