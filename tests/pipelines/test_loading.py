"""What people really have: single files, half-precision variants, cached hub ids, LoRAs of several trainers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file

from basinguard.core.generation import name_of
from basinguard.core.safetensors_header import read_header
from basinguard.pipelines import loading
from basinguard.pipelines.architecture import SD21, SDXL, context_width, sd21_config, sd21_tokenizer, sdxl_config
from basinguard.pipelines.loading import load_pipeline, locate, model_config
from basinguard.pipelines.prediction_type import evidence, require_prediction_type
from basinguard.training.memory_footprint import configs_of, empty_parts
from basinguard.training.preflight import base_problems
from support.original_layout import build_small_sd2, save_original


@pytest.fixture(scope="module")
def small():
    return build_small_sd2()


@pytest.fixture(scope="module")
def small_dir(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("small")
    small.save_pretrained(directory)
    return directory


@pytest.fixture
def single(small, small_dir, tmp_path, monkeypatch):
    """Writes a single file of the small model, whose configuration stands in for the packaged one."""
    monkeypatch.setattr(loading, "SD21", small_dir)
    return lambda **metadata: save_original(small, tmp_path / "model.safetensors", metadata)


def weights(pipe):
    return {
        f"{part}.{name}": value
        for part in ("unet", "vae", "text_encoder")
        for name, value in getattr(pipe, part).state_dict().items()
    }


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_single_file_is_the_pipeline_it_was_written_from(small, single):
    pipe = load_pipeline(single(**{"modelspec.prediction_type": "v"}))
    same(weights(pipe), weights(small))
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.unet.config.sample_size == 96
    assert pipe.tokenizer("a cat").input_ids == small.tokenizer("a cat").input_ids


def test_a_single_file_of_the_base_model_predicts_noise(single):
    pipe = load_pipeline(single(**{"modelspec.prediction_type": "epsilon"}))
    assert (pipe.scheduler.config.prediction_type, pipe.unet.config.sample_size) == ("epsilon", 64)


def test_a_single_file_that_says_nothing_is_measured_not_guessed(single, monkeypatch):
    path = single()
    with pytest.raises(ValueError, match=r"neither its metadata nor its output says .* set prediction_type to epsilon"):
        load_pipeline(path)  # random weights predict nothing
    assert load_pipeline(path, prediction_type="epsilon").scheduler.config.prediction_type == "epsilon"
    monkeypatch.setattr(loading, "evidence", lambda pipe: type("Found", (), {"prediction_type": "epsilon"}))
    assert load_pipeline(path).scheduler.config.prediction_type == "epsilon"


class NoisePredictor(torch.nn.Module):
    """A velocity network as the epsilon network that it is equal to."""

    def __init__(self, pipe):
        super().__init__()
        self.unet, self.signal = pipe.unet, pipe.scheduler.alphas_cumprod
        self.dtype, self.device = pipe.unet.dtype, pipe.unet.device

    def forward(self, x, timestep, **arguments):
        signal = self.signal[timestep].reshape(-1, 1, 1, 1)
        velocity = self.unet(x, timestep, **arguments).sample
        return SimpleNamespace(sample=signal.sqrt() * velocity + (1 - signal).sqrt() * x)


def test_a_network_tells_what_it_predicts():
    pipe = load_pipeline("tinyworld")
    assert evidence(pipe).prediction_type == "v_prediction"
    require_prediction_type(pipe, "tinyworld")
    pipe.unet = NoisePredictor(pipe)
    assert evidence(pipe).prediction_type == "epsilon"
    with pytest.raises(ValueError, match=r"its scheduler says v_prediction, but its network predicts epsilon"):
        require_prediction_type(pipe, "tinyworld")


def test_an_untrained_network_tells_nothing(tiny_pipeline_dir):
    assert evidence(load_pipeline(tiny_pipeline_dir)).prediction_type is None


def test_a_truncated_single_file(single):
    path = single()
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"ends too early \([\d,]+ bytes\); download or copy it again"):
        load_pipeline(path)
    path.write_bytes(path.read_bytes()[:100])
    assert "ends too early" in next(base_problems(path))
    path.write_bytes(b"hello")
    assert "not a safetensors file" in next(base_problems(path))


def test_truncated_weights_of_a_directory_are_found_in_the_plan(small_dir, tmp_path):
    base = shutil.copytree(small_dir, tmp_path / "base")
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    (problem,) = base_problems(base)
    assert "vae/diffusion_pytorch_model.safetensors: ends too early" in problem


def keys_of(width, prefix=""):
    return {f"{prefix}down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, width)}


@pytest.mark.parametrize(("width", "name"), [(768, "Stable Diffusion 1.x"), (2048, "Stable Diffusion XL")])
def test_weights_of_another_architecture(small_dir, tmp_path, width, name):
    base = shutil.copytree(small_dir, tmp_path / "base")
    save_file(keys_of(width), base / "unet" / "diffusion_pytorch_model.safetensors")
    (problem,) = base_problems(base)
    assert f"its weights are {name}, its configuration is Stable Diffusion 2.x" in problem
    single = tmp_path / "other.safetensors"
    save_file(
        {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, width)}, single
    )
    (problem,) = base_problems(single)
    assert f"is {name}; single files work for Stable Diffusion 2.x, give a directory" in problem
    assert problem.endswith("as StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(DIR) writes one") is (
        width == 2048
    )


def test_a_plan_for_another_architecture_or_prediction_type(tiny_pipeline_dir, small_dir):
    (problem,) = base_problems(tiny_pipeline_dir, "sd2")
    assert "a model with text states 32 wide, this configuration is for Stable Diffusion 2.x" in problem
    (problem,) = base_problems(small_dir, "sd1")
    assert "is Stable Diffusion 2.x, this configuration is for Stable Diffusion 1.x" in problem
    (problem,) = base_problems(small_dir, "sd2", "epsilon")
    assert "predicts v_prediction, this configuration is for epsilon; give such a base, or set" in problem
    assert not list(base_problems(small_dir, "sd2", "v_prediction"))


def test_an_inpainting_model(small_dir, tmp_path):
    base = shutil.copytree(small_dir, tmp_path / "base")
    path = base / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    assert "its UNet takes 9 channels (inpainting, depth?)" in next(base_problems(base))


def test_a_pickle_is_not_even_looked_at(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"")
    assert "a .ckpt file is never opened, it may run code; convert it" in next(base_problems(tmp_path / "model.ckpt"))
    assert "no such directory or file" in next(base_problems("models/gone.safetensors"))


def cached(small_dir, monkeypatch, cache, keep=lambda part: True):
    """A hub cache as `huggingface_hub` lays it out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(cache))
    root = cache / "models--someone--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(
        small_dir, root / "snapshots" / ("0" * 40), ignore=lambda _, names: [n for n in names if not keep(n)]
    )
    return root / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("variant", [None, "fp16", pytest.param("bf16", marks=pytest.mark.long)])
def test_a_cached_hub_id_is_read_without_network(small, small_dir, tmp_path, monkeypatch, variant):
    if variant:
        half = build_small_sd2().to(torch.float16 if variant == "fp16" else torch.bfloat16)
        half.save_pretrained(tmp_path / "half", variant=variant)
        small_dir = tmp_path / "half"
    snapshot = cached(small_dir, monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(file_download, "get_hf_file_metadata", lambda *_, **__: pytest.fail("network"))
    assert locate("someone/model") == snapshot
    ours, theirs = weights(load_pipeline("someone/model")), weights(small)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0 if variant is None else 1e-2, atol=1e-3)
        assert value.dtype == theirs[name].dtype


def test_half_a_cached_hub_id_has_to_be_fetched(small_dir, tmp_path, monkeypatch):
    cached(small_dir, monkeypatch, tmp_path / "cache", keep=lambda name: name != "vae")
    assert locate("someone/model") == "someone/model"


def test_the_packaged_configuration_is_stable_diffusion_2_1():
    with torch.device("meta"):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        unet = UNet2DConditionModel.from_config(sd21_config("unet/config.json"))
        vae = AutoencoderKL.from_config(sd21_config("vae/config.json"))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(SD21 / "text_encoder"))
    counts = [sum(p.numel() for p in part.parameters()) for part in (unet, text, vae)]
    assert counts == [865_910_724, 340_387_840, 83_653_863]
    assert DDIMScheduler.from_pretrained(SD21 / "scheduler").config.prediction_type == "v_prediction"


def test_the_packaged_configuration_is_stable_diffusion_xl():
    parts = empty_parts(configs_of(sdxl_config))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert counts == {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    }  # fmt: skip
    assert EulerDiscreteScheduler.from_pretrained(SDXL / "scheduler").config.prediction_type == "epsilon"


def test_the_tokenizer_is_clips():
    import open_clip

    words = "a photograph of an astronaut riding a horse, 4k - très détaillé"
    ours = sd21_tokenizer()(words, padding="max_length", max_length=77).input_ids
    assert ours == open_clip.tokenize([words])[0].tolist()  # which pads with 0, the number of "!"


LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def kohya_file(path, alphas, width=1024, prefix="lora_unet_", rank=2):
    """A LoRA as kohya's trainers write it, on one layer for each alpha (None: no such key)."""
    generator, state = torch.Generator().manual_seed(0), {}
    for number, alpha in enumerate(alphas):
        name = f"{prefix}{LAYER.replace('attentions_0', f'attentions_{number}')}"
        state[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator)
        state[f"{name}.lora_up.weight"] = torch.randn(32, rank, generator=generator)
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    save_file(state, path)
    return path


def delta(pipe, number):
    """What the adapter adds to one layer's weight."""
    layer = pipe.unet.down_blocks[0].attentions[number].transformer_blocks[0].attn2.to_k
    return layer.get_delta_weight("default").detach()


@pytest.mark.parametrize("alphas", [pytest.param((2, 2), marks=pytest.mark.long), (1, 4), (None, 1)])
def test_a_kohya_lora_acts_as_its_trainer_meant(small_dir, tmp_path, alphas):
    path = kohya_file(tmp_path / "lora.safetensors", alphas)
    state, pipe = load_file(path), load_pipeline(small_dir, lora=path)
    for number, alpha in enumerate(alphas):
        name = f"lora_unet_{LAYER.replace('attentions_0', f'attentions_{number}')}"
        meant = state[f"{name}.lora_up.weight"] @ state[f"{name}.lora_down.weight"] * (alpha or 2) / 2
        torch.testing.assert_close(delta(pipe, number), meant, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    half = load_pipeline(small_dir, lora=path, lora_strength=0.5)
    torch.testing.assert_close(delta(half, 0), delta(pipe, 0) / 2)


def test_a_diffusers_lora_is_put_on(small_dir, tmp_path):
    from diffusers import StableDiffusionPipeline

    trained = load_pipeline(small_dir, lora=kohya_file(tmp_path / "lora.safetensors", (1, 1)))
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained.unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path / "own", unet_lora_layers=layers)
    again = load_pipeline(small_dir, lora=tmp_path / "own" / "pytorch_lora_weights.safetensors")
    # without metadata a diffusers file says nothing of alpha: it acts at alpha = rank, twice the kohya file's 1 / 2
    torch.testing.assert_close(delta(again, 1), 2 * delta(trained, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (
            lambda path: kohya_file(path, (1,), width=768),
            "is for Stable Diffusion 1.x, the base is Stable Diffusion 2.x",
        ),
        (lambda path: kohya_file(path, (1,), width=2048), "is for Stable Diffusion XL"),
        (lambda path: save_file({"x.hada_w1_a": torch.zeros(2)}, path), "only hada_w1_a, a half or less of it"),
        (
            lambda path: save_file({"unet.conv_in.weight": torch.zeros(2)}, path),
            "is not a LoRA; a whole model is given",
        ),
        (lambda path: path.write_bytes(b"hello"), "not a safetensors file"),
        (lambda path: None, "no such file"),
    ],
    ids=["sd1", "xl", "loha", "model", "text", "missing"],
)
def test_a_file_that_is_no_lora_for_this_base(small_dir, tmp_path, make, word):
    path = tmp_path / "lora.safetensors"
    make(path)
    with pytest.raises((ValueError, FileNotFoundError), match=word) as caught:
        load_pipeline(small_dir, lora=path)
    assert "\n" not in str(caught.value)


def test_a_lora_given_as_the_base_is_named(tmp_path):
    problem = next(base_problems(kohya_file(tmp_path / "lora.safetensors", (1,))))
    assert "is a LoRA for Stable Diffusion 2.x; give its base model, and this file as the LoRA" in problem


def test_every_layout_tells_its_architecture(small_dir):
    header = read_header(small_dir / "unet" / "diffusion_pytorch_model.safetensors")
    assert context_width(header.shapes) == model_config(small_dir, "unet/config.json")["cross_attention_dim"]
    assert header.parameters == sum(p.numel() for p in load_pipeline(small_dir).unet.parameters())
    assert name_of(5) == "a model with text states 5 wide"
