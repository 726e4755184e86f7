"""Training a tiny random pipeline: the loss is diffusers' own, only what should change changes, runs resume."""

import signal
import warnings

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from lightning.pytorch import Callback, Trainer

from basinguard.pipelines.loading import load_pipeline
from basinguard.training.finetune import FineTune
from basinguard.training.objective import drop_captions
from support.fine_tunes import fine_tune, image_folder

CAPTIONS = ["a ball", "a box"]


def make_batch():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return {"pixel_values": pixels, "caption": CAPTIONS, "index": torch.arange(2)}


def diffusers_loss(pipe, schedule, batch, min_snr_gamma=None):
    """The loss of diffusers' examples/text_to_image/train_text_to_image.py, written out."""
    latents = pipe.vae.encode(batch["pixel_values"]).latent_dist.sample() * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape)  # randn_like there; its order of filling depends on the strides
    timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),)).long()
    noisy = schedule.add_noise(latents, noise, timesteps)
    ids = pipe.tokenizer(batch["caption"], max_length=16, padding="max_length", truncation=True, return_tensors="pt")
    hidden = pipe.text_encoder(ids.input_ids, return_dict=False)[0]
    is_v = schedule.config.prediction_type == "v_prediction"
    truth = schedule.get_velocity(latents, noise, timesteps) if is_v else noise
    prediction = pipe.unet(noisy, timesteps, hidden, return_dict=False)[0]
    if min_snr_gamma is None:
        return F.mse_loss(prediction.float(), truth.float(), reduction="mean")
    snr = compute_snr(schedule, timesteps)
    weights = torch.stack([snr, min_snr_gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1) if is_v else weights / snr
    loss = F.mse_loss(prediction.float(), truth.float(), reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


def fit(base, folder, root, *callbacks, epochs=2, ckpt_path=None, batch_size=2, **options):
    model = fine_tune(base, **{"rank": 2, "learning_rate": 1e-2, **options})
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, callbacks=list(callbacks),
    )  # fmt: skip
    images = image_folder(str(folder), resolution=32, batch_size=batch_size, keep_in_memory=True)
    trainer.fit(model, images, ckpt_path=ckpt_path)
    return model, trainer


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_loss_equals_diffusers(tiny_pipeline_dir, tiny_epsilon_dir, prediction_type, gamma):
    base = tiny_pipeline_dir if prediction_type == "v_prediction" else tiny_epsilon_dir
    model = fine_tune(base, method="full", min_snr_gamma=gamma)
    torch.manual_seed(5)
    ours = model.loss(make_batch())
    pipe = StableDiffusionPipeline.from_pretrained(base)
    schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    torch.manual_seed(5)
    theirs = diffusers_loss(pipe, schedule, make_batch(), gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_fresh_adapter_changes_no_prediction(tiny_pipeline_dir):
    losses = []
    for options in ({"method": "full"}, {"method": "lora", "rank": 2, "train_text_encoder": True}):
        model = fine_tune(tiny_pipeline_dir, **options)
        torch.manual_seed(5)
        losses.append(model.loss(make_batch()))
    assert torch.equal(*losses)


def test_lora_trains_adapters_only_and_resumes_bit_for_bit(tiny_pipeline_dir, scene_folder, tmp_path):
    whole, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=2, dropout=0.1)
    before = weights_of(fine_tune(tiny_pipeline_dir, rank=2, dropout=0.1))
    after = weights_of(whole)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == set(whole.trained())
    assert all(".lora_" in name and name.startswith("unet.") for name in changed)

    _, trainer = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=1, dropout=0.1)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    assert stored["state_dict"].keys() == changed
    assert path.stat().st_size < 600_000 < 4 * sum(value.numel() for value in after.values())
    resumed, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=2, dropout=0.1, ckpt_path=path)
    assert all(torch.equal(value, after[name]) for name, value in weights_of(resumed).items())


class Interrupt(Callback):
    """A real Ctrl-C, in the middle of a batch."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 4:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_a_checkpoint_that_resumes_bit_for_bit(tiny_pipeline_dir, scene_folder, tmp_path):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    with pytest.raises(SystemExit):
        fit(tiny_pipeline_dir, scene_folder, tmp_path, Interrupt(), ema_decay=0.9)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones while it shuts down
    path = tmp_path / "interrupted.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 4
    whole, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, ema_decay=0.9)
    resumed, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, ema_decay=0.9, ckpt_path=path)
    assert all(torch.equal(v, resumed.trained()[name]) for name, v in whole.trained().items())
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True))


def test_full_training_changes_all_of_the_unet_and_nothing_else(tiny_pipeline_dir, scene_folder, tmp_path):
    model, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, method="full", epochs=1)
    before, after = weights_of(fine_tune(tiny_pipeline_dir, method="full")), weights_of(model)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if name.startswith("unet.")}


def test_noise_ignores_the_global_generator_and_leaves_it_alone(tiny_pipeline_dir, scene_folder, tmp_path):
    torch.manual_seed(1)
    first, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=1)
    torch.manual_seed(2)
    second, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=1)
    assert all(torch.equal(value, second.trained()[name]) for name, value in first.trained().items())


def test_cached_encodings_are_the_uncached_ones(tiny_pipeline_dir, monkeypatch):
    batch = make_batch()
    turned = {
        **batch,
        "pixel_values": batch["pixel_values"].flip(0),
        "caption": CAPTIONS[::-1],
        "index": torch.tensor([1, 0]),
    }
    losses, encoded = [], []
    for cache in (False, True):
        model = fine_tune(tiny_pipeline_dir, cache=cache)
        encode = model.vae.encode
        monkeypatch.setattr(
            model.vae, "encode", lambda pixels, encode=encode: encoded.append(len(pixels)) or encode(pixels)
        )
        torch.manual_seed(5)
        losses.append(torch.stack([model.loss(batch), model.loss(turned), model.loss(batch)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert encoded == [2, 2, 2, 2]  # three times without the cache, once with it


def test_caching_refuses_pictures_that_change(tiny_pipeline_dir, scene_folder, tmp_path):
    model = fine_tune(tiny_pipeline_dir, cache=True)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    with pytest.raises(ValueError, match="turn off random crop and flip, or the cache"):
        trainer.fit(model, image_folder(str(scene_folder), resolution=32, flip=True))


def test_export_is_the_trained_model_without_adapters(tiny_pipeline_dir, scene_folder, tmp_path):
    model, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=1, train_text_encoder=True)
    before = weights_of(model)
    model.export_pipeline().save_pretrained(tmp_path / "exported")
    exported = load_pipeline(tmp_path / "exported")
    assert not [name for name in exported.unet.state_dict() if "lora" in name]
    noise, timestep = torch.randn(1, 4, 16, 16), torch.tensor([500])
    with torch.no_grad():
        embeddings = [pipe.encode_prompt(["a ball"], "cpu", 1, False)[0] for pipe in (model.pipe, exported)]
        model.unet.eval()
        ours, theirs = model.unet(noise, timestep, embeddings[0])[0], exported.unet(noise, timestep, embeddings[1])[0]
        untrained = load_pipeline(tiny_pipeline_dir).unet(noise, timestep, embeddings[0])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - untrained).abs().max() > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_base_that_holds_the_scheduler_that_adds_noise_is_exported_with_a_sampler(tiny_pipeline_dir, tmp_path):
    base = load_pipeline(tiny_pipeline_dir)
    base.scheduler = DDPMScheduler.from_config(base.scheduler.config)
    base.save_pretrained(tmp_path / "ddpm")
    model = fine_tune(tmp_path / "ddpm", rank=2)
    exported = model.export_pipeline()
    assert type(exported.scheduler) is DDIMScheduler
    assert exported.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(exported.scheduler.alphas_cumprod, base.scheduler.alphas_cumprod)
    assert type(model.pipe.scheduler) is DDPMScheduler, "training goes on with its own"


def test_export_takes_the_averaged_weights(tiny_pipeline_dir, scene_folder, tmp_path):
    model, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=1, method="full", ema_decay=0.5)
    raw, exported = model.unet.conv_in.weight, model.export_pipeline().unet.conv_in.weight
    average = dict(zip(model.trained(), model.ema.shadow_params, strict=True))["unet.conv_in.weight"]
    assert torch.equal(exported, average)
    assert not torch.equal(exported, raw)
    before = raw.detach().clone()
    with model.averaged_weights():
        assert torch.equal(model.unet.conv_in.weight, average)
    assert torch.equal(model.unet.conv_in.weight, before)


def test_half_precision_files_are_trained_in_float32(tiny_pipeline_dir, tmp_path):
    load_pipeline(tiny_pipeline_dir).to(torch.float16).save_pretrained(tmp_path / "fp16", variant="fp16")
    model = fine_tune(tmp_path / "fp16")
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_bfloat16_holds_the_base_and_keeps_the_adapter_in_float32(tiny_pipeline_dir):
    model = fine_tune(tiny_pipeline_dir, rank=2, weights="bfloat16", gradient_checkpointing=True)
    assert {value.dtype for value in model.trained().values()} == {torch.float32}
    assert {v.dtype for n, v in model.named_parameters() if n not in model.trained()} == {torch.bfloat16}
    loss = model.loss(make_batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(value.grad).all() for value in model.trained().values())


def test_gradient_checkpointing_gives_the_same_gradients(tiny_pipeline_dir):
    gradients = []
    for checkpointing in (False, True):
        model = fine_tune(tiny_pipeline_dir, method="full", gradient_checkpointing=checkpointing)
        torch.manual_seed(5)
        model.loss(make_batch()).backward()
        gradients.append(model.unet.conv_in.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def moments_by_name(model, trainer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = trainer.optimizers[0].state
    return {(names[p], k): v.clone() for p, s in state.items() for k, v in s.items() if isinstance(v, torch.Tensor)}


class Moments(Callback):
    """What the optimizer holds when training begins."""

    def __init__(self, moments):
        self.moments = moments

    def on_train_start(self, trainer, pl_module):
        self.moments |= moments_by_name(pl_module, trainer)


@pytest.mark.long
def test_eight_bit_moments_train_as_full_ones_do_and_resume(tiny_pipeline_dir, scene_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    start = weights_of(fine_tune(tiny_pipeline_dir, method="full"))
    options = {"method": "full", "learning_rate": 1e-4, "epochs": 3}
    full, _ = fit(tiny_pipeline_dir, scene_folder, tmp_path / "full", **options)
    model, trainer = fit(tiny_pipeline_dir, scene_folder, tmp_path / "eight", name="adamw8bit", **options)
    large = [s for p, s in trainer.optimizers[0].state.items() if p.numel() >= 4096]  # smaller ones stay
    assert large
    assert all(state["state1"].dtype == state["state2"].dtype == torch.uint8 for state in large)
    steps = [torch.cat([(after[n] - start[n]).flatten() for n in start]) for after in map(weights_of, (full, model))]
    assert F.cosine_similarity(*steps, dim=0) > 0.99
    trainer.save_checkpoint(tmp_path / "at3.ckpt")
    resumed = {}
    options |= {"name": "adamw8bit", "epochs": 4, "ckpt_path": tmp_path / "at3.ckpt"}
    fit(tiny_pipeline_dir, scene_folder, tmp_path / "resumed", Moments(resumed), **options)
    saved = moments_by_name(model, trainer)
    assert resumed.keys() == saved.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in saved.items())


def test_captions_are_dropped_as_often_as_asked():
    torch.manual_seed(0)
    dropped = drop_captions(["a"] * 4000, 0.25).count("")
    assert 890 < dropped < 1110  # 1000 expected, 4 standard deviations of Binomial(4000, 0.25)


def test_a_checkpoint_of_another_configuration_is_refused(tiny_pipeline_dir):
    model = fine_tune(tiny_pipeline_dir, rank=2)
    checkpoint = {"state_dict": dict(list(model.trained().items())[1:])}
    with pytest.raises(ValueError, match=r"does not fit: 1 weights are on one side only, such as 'unet\..*lora_A"):
        model.on_load_checkpoint(checkpoint)


def test_a_checkpoint_that_was_trained_otherwise_is_warned_of(tiny_pipeline_dir):
    model = fine_tune(tiny_pipeline_dir, rank=2, rank_at_noise=0.5, high_noise=0.25, prior_weight=1.0)
    before = fine_tune(tiny_pipeline_dir, rank=2, keep_unconditional=0.5)
    checkpoint = {"state_dict": model.trained(), "hyper_parameters": dict(before.hparams)}
    changed = (
        r"trained otherwise: lora\.rank_at_noise was 1\.0, is 0\.5; loss\.high_noise was 1\.0, is 0\.25; "
        r"loss\.keep_unconditional was 0\.5, is 0\.0; loss\.prior_weight was 0\.0, is 1\.0\. Training goes on"
    )
    with pytest.warns(UserWarning, match=changed):
        model.on_load_checkpoint(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before.on_load_checkpoint(checkpoint)


def test_a_checkpoint_loads_without_a_trainer(tiny_pipeline_dir, scene_folder, tmp_path):
    model, trainer = fit(tiny_pipeline_dir, scene_folder, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = FineTune.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True, map_location="cpu")
    assert all(torch.equal(value, loaded.trained()[name]) for name, value in model.trained().items())


def test_every_number_out_of_range_is_named(tiny_pipeline_dir):
    with pytest.raises(ValueError, match=r"rank=0 \(at least 1\), dropout=1\.0 .*ema_decay=2"):
        fine_tune(tiny_pipeline_dir, rank=0, dropout=1.0, ema_decay=2)


def test_unknown_lora_targets_are_named(tiny_pipeline_dir):
    with pytest.raises(ValueError, match=r"\['to_z'\] name no layer of UNet2DConditionModel; usual ones"):
        fine_tune(tiny_pipeline_dir, targets=["to_q", "to_z"])
