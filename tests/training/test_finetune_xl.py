"""Training a tiny random SDXL: the loss and what the UNet is told are those of diffusers' own script, runs resume."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from PIL import Image
from torchvision import transforms

from basinguard.pipelines.loading import load_pipeline
from basinguard.training.accelerate import LoopGuard
from basinguard.training.loss_filters import LargeGap
from support.fine_tunes import fine_tune, image_folder
from support.guarded_runs import PLAN, make_guard, picture_folder
from support.tiny_pipeline import build_scheduler, build_tiny_xl

CAPTIONS = ["a ball", ""]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Epsilon and v; the second one's empty prompt is no zeros."""
    folder = tmp_path_factory.mktemp("xl")
    pipe = build_tiny_xl()
    pipe.save_pretrained(folder / "epsilon")
    pipe.register_modules(scheduler=build_scheduler("v_prediction"))
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    pipe.save_pretrained(folder / "v_prediction")
    return {kind: folder / kind for kind in ("epsilon", "v_prediction")}


def make_batch():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    sizes = torch.tensor([[64, 96, 0, 8, 32, 32], [32, 40, 3, 0, 32, 32]])
    return {"pixel_values": pixels, "caption": CAPTIONS, "index": torch.arange(2), "sizes": sizes}


def script_states(pipe, captions):
    """`encode_prompt` of diffusers' train_text_to_image_lora_sdxl.py, written out; zeros as the pipeline has them."""
    states = []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(captions, max_length=16, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = encoder(ids, output_hidden_states=True, return_dict=False)
        pooled, hidden = output[0], output[-1][-2]
        states.append(hidden)
    states = torch.concat(states, dim=-1)
    if pipe.config.force_zeros_for_empty_prompt:
        empty = [k for k, caption in enumerate(captions) if not caption]
        states[empty], pooled[empty] = 0, 0
    return states, pooled


def script_loss(pipe, batch):
    """Its loss, with its time ids: original height and width, top and left of the crop, target height and width."""
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    latents = pipe.vae.encode(batch["pixel_values"]).latent_dist.sample() * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape)
    timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),)).long()
    states, pooled = script_states(pipe, batch["caption"])
    prediction = pipe.unet(
        schedule.add_noise(latents, noise, timesteps), timesteps, states,
        added_cond_kwargs={"time_ids": batch["sizes"].float(), "text_embeds": pooled}, return_dict=False,
    )[0]  # fmt: skip
    is_v = schedule.config.prediction_type == "v_prediction"
    truth = schedule.get_velocity(latents, noise, timesteps) if is_v else noise
    return F.mse_loss(prediction.float(), truth.float(), reduction="mean")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_the_loss_is_that_of_diffusers_script(bases, kind):
    model = fine_tune(bases[kind], method="full")
    torch.manual_seed(5)
    ours = model.loss(make_batch())
    pipe = StableDiffusionXLPipeline.from_pretrained(bases[kind])
    torch.manual_seed(5)
    theirs = script_loss(pipe, make_batch())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.manual_seed(5)
    other = model.loss(make_batch() | {"sizes": torch.full((2, 6), 32)})
    assert abs(ours - other) > 1e-5, "sizes matter, so that the equality above says something"


def script_sizes(image, resolution):
    """Sizes as the script's `preprocess_train` and `compute_time_ids` have them, with its centre crop."""
    original = (image.height, image.width)
    image = transforms.Resize(resolution, interpolation=transforms.InterpolationMode.LANCZOS)(image)
    top = max(0, round((image.height - resolution) / 2.0))
    left = max(0, round((image.width - resolution) / 2.0))
    return [*original, top, left, resolution, resolution]


def test_the_unet_is_told_what_the_script_tells_it(bases, tmp_path):
    sizes = [(64, 64), (96, 48), (40, 80), (32, 36)]
    for k, size in enumerate(sizes):
        Image.new("RGB", size, (k, 0, 0)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(f"a ball {k}")
    model, batches = fine_tune(bases["epsilon"], rank=2), []
    model.unet.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    images = image_folder(str(tmp_path), resolution=32, batch_size=4)
    images.trainer = SimpleNamespace()
    (batch,) = iter(images.train_dataloader())
    with torch.no_grad():
        model.loss(batch)
    wanted = [script_sizes(Image.new("RGB", sizes[k]), 32) for k in batch["index"].tolist()]
    assert batches[0].tolist() == wanted
    with torch.no_grad():
        model.loss({key: value for key, value in batch.items() if key != "sizes"})
    assert batches[1].tolist() == [[32, 32, 0, 0, 32, 32]] * 4


def fit(base, folder, root, *callbacks, epochs=2, ckpt_path=None, **options):
    model = fine_tune(base, **{"rank": 2, "learning_rate": 1e-2, **options})
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, image_folder(str(folder), resolution=32, batch_size=2, keep_in_memory=True), ckpt_path=ckpt_path)
    return model, trainer


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.long  # reliability/test_never_perturbs.py has it of one encoder
def test_a_guarded_run_trains_as_a_bare_one_that_was_resumed(bases, tmp_path):
    """Adapters of the UNet and both text encoders; averaged, checkpointed activations, dropped captions."""
    folder = picture_folder(tmp_path / "pictures", count=2)
    options = {"train_text_encoder": True, "ema_decay": 0.9, "gradient_checkpointing": True, "caption_dropout": 0.5}
    guard = make_guard(every_n_epochs=2)
    guarded, _ = fit(bases["epsilon"], folder, tmp_path, guard, **options)
    assert [(report.epoch, report.problem) for report in guard.history] == [(-1, ""), (1, "")]
    _, trainer = fit(bases["epsilon"], folder, tmp_path, epochs=1, **options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    stored = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    resumed, _ = fit(bases["epsilon"], folder, tmp_path, ckpt_path=tmp_path / "half.ckpt", **options)
    after = weights_of(resumed)
    assert all(torch.equal(value, after[name]) for name, value in weights_of(guarded).items())
    averages = zip(guarded.ema.shadow_params, resumed.ema.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in averages)
    assert stored.keys() == resumed.trained().keys()
    halves = {name for name in stored if "lora_B" in name}  # which begin as zeros
    still = {name for name in halves if not after[name].any()}
    assert {name.split(".")[0] for name in halves - still} == {"unet", "text_encoder", "text_encoder_2"}
    assert still, "the UNet never reads the last layer of the first text encoder"
    assert all(name.startswith("text_encoder.") and "layers.1." in name for name in still)


def test_an_export_is_a_pipeline_of_its_own_that_predicts_the_same(bases, tmp_path):
    folder = picture_folder(tmp_path / "pictures", count=2)
    model, _ = fit(bases["v_prediction"], folder, tmp_path, epochs=1, train_text_encoder=True)
    before = weights_of(model)
    exported = model.export_pipeline()
    assert type(exported) is StableDiffusionXLPipeline
    assert not exported.config.force_zeros_for_empty_prompt
    assert exported.watermark is None
    exported.save_pretrained(tmp_path / "exported")
    loaded = load_pipeline(tmp_path / "exported")
    assert not [name for part in (loaded.unet, loaded.text_encoder_2) for name in part.state_dict() if "lora" in name]
    model.eval()
    noise, timestep = torch.randn(2, 4, 16, 16), torch.tensor([500, 100])
    with torch.no_grad():
        ours, theirs, base = (
            model.family.forward(
                pipe, noise, timestep,
                model.family.arguments(model.family.text_states(pipe, CAPTIONS), make_batch()["sizes"]),
            )
            for pipe in (model.pipe, loaded, load_pipeline(bases["v_prediction"]))
        )  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - base).abs().max() > 1e-2
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_full_training_changes_the_unet_and_both_text_encoders_if_asked(bases):
    for text, parts in ((False, {"unet"}), (True, {"unet", "text_encoder", "text_encoder_2"})):
        model = fine_tune(bases["epsilon"], method="full", train_text_encoder=text)
        model.loss(make_batch()).backward()
        touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched == parts
        opened = {name.split(".")[0] for name in model.trained()}
        assert opened == parts


@pytest.mark.long  # test_finetune.py has it of one encoder
def test_cached_captions_are_the_uncached_ones(bases, monkeypatch):
    batch, losses, asked = make_batch(), [], []
    for cache in (False, True):
        model = fine_tune(bases["epsilon"], cache=cache)
        encode = model.pipe.encode_prompt
        monkeypatch.setattr(model.pipe, "encode_prompt", lambda *a, f=encode, **k: asked.append(cache) or f(*a, **k))  # noqa: B023
        torch.manual_seed(5)
        with torch.no_grad():
            losses.append(torch.stack([model.loss(batch), model.loss(batch)]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert asked == [False, False, True]


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.long)])
def test_the_unconditional_branch_is_held_where_the_base_had_it(bases, method):
    """Zero before training, by closed form; afterwards the distance to the base's own prediction of zeros."""
    model = fine_tune(bases["epsilon"], method=method, rank=2, keep_unconditional=1.0)
    latents, noise = torch.randn(2, 2, 4, 16, 16).unbind()
    times, sizes = torch.tensor([100, 700]), make_batch()["sizes"]
    assert model.drift(latents, noise, times, sizes) == 0
    with torch.no_grad():
        for name, parameter in model.trained().items():
            if method == "full" or "lora_B" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape))
        noisy = model.forward_process.add_noise(latents, noise, times)
        states = {"text_embeds": torch.zeros(2, 24), "time_ids": sizes}
        pipes = (model.pipe, load_pipeline(bases["epsilon"]))
        tuned, base = (p.unet(noisy, times, torch.zeros(2, 16, 80), added_cond_kwargs=states).sample for p in pipes)
        torch.testing.assert_close(model.drift(latents, noise, times, sizes), F.mse_loss(tuned, base))
        assert F.mse_loss(tuned, base) > 1e-6


def test_noise_on_captions_falls_on_everything_that_a_text_encoder_said(bases):
    model = fine_tune(bases["epsilon"])
    states = model.encode_captions(["a ball"] * 64)
    spread = {k: (v - states.texts[k]).std() for k, v in states.noised(0.1).texts.items()}
    assert spread.keys() == {"encoder_hidden_states", "text_embeds"}
    assert all(abs(std - 0.1) < 0.01 for std in spread.values())  # 64 * 24 numbers: 0.1 * (1 +- 3 / sqrt(2 * 1536))


def test_a_loss_filter_sees_the_gap_to_zeros(bases):
    class Note(LargeGap):
        def __call__(self, errors, timesteps, gaps):
            self.gaps = gaps()
            return torch.ones(len(errors))

    model = fine_tune(bases["epsilon"], method="full")
    model.filter = Note()
    torch.manual_seed(5)
    model.loss(make_batch())
    assert model.filter.gaps[0] > 0
    assert model.filter.gaps[1] == 0, "an empty caption is the unconditional branch"


def test_a_script_that_holds_two_text_encoders_is_guarded(bases, tmp_path):
    pipe = load_pipeline(bases["epsilon"])
    folder = picture_folder(tmp_path / "pictures", count=3)
    paths = sorted(folder.glob("*.png"))
    guard = LoopGuard.for_script(
        pipe.unet, pipe.vae, [pipe.text_encoder, pipe.text_encoder_2], [pipe.tokenizer, pipe.tokenizer_2],
        pipe.scheduler, images=paths, captions=[path.with_suffix(".txt").read_text() for path in paths], plan=PLAN,
    )  # fmt: skip
    assert type(guard.pipe) is StableDiffusionXLPipeline
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    report = guard.measure(guard.pipe, epoch=-1)
    assert not report.problem
    assert report.estimates["risk"].n == 2
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
