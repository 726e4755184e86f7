"""Every kind of bad input has one message, before anything is trained, and all of them come at once."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from basinguard.pipelines import loading
from basinguard.pipelines.loading import load_pipeline, locate
from basinguard.pipelines.schedulers import require_scheduler
from basinguard.training.finetune import FineTune
from basinguard.training.preflight import check_fit
from support.fine_tunes import image_folder


def refusal(*arguments, **options):
    with pytest.raises(ValueError, match="nothing was trained") as caught:
        check_fit(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def base(tiny_pipeline_dir, tmp_path):
    """A copy of the tiny pipeline that a test may damage."""
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "base")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def scenes(folder, **options):
    return image_folder(str(folder), **{"resolution": 32, **options})


def test_a_good_plan_passes(tiny_pipeline_dir, scene_folder):
    assert check_fit(tiny_pipeline_dir, scenes(scene_folder), probe_images=6, scheduler="DDIMScheduler") is None


def test_a_missing_folder(tiny_pipeline_dir, tmp_path):
    message = refusal(tiny_pipeline_dir, scenes(tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'}: no such folder; give the folder that holds the images" in message


def test_an_empty_folder(tiny_pipeline_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: no captioned image; add images" in refusal(tiny_pipeline_dir, scenes(tmp_path / "empty"))


def test_a_file_instead_of_a_folder(tiny_pipeline_dir, scene_folder):
    assert "0.png is a file; give the folder" in refusal(tiny_pipeline_dir, scenes(scene_folder / "0.png"))


def test_an_image_without_a_caption(tiny_pipeline_dir, scene_folder):
    Image.new("RGB", (8, 8)).save(scene_folder / "extra.png")
    message = refusal(tiny_pipeline_dir, scenes(scene_folder))
    assert "- extra.png: no caption: neither a row in a metadata file nor a .txt" in message


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.write_bytes(b""), "0 bytes; download or copy it again"),
        (lambda path: path.write_bytes(b"hello"), "not an image in a known format"),
        (lambda path: path.write_bytes(path.read_bytes()[:600]), "ends too early"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_an_unreadable_image(tiny_pipeline_dir, scene_folder, damage, word):
    damage(scene_folder / "2.png")
    message = refusal(tiny_pipeline_dir, scenes(scene_folder))
    assert "- 2.png: " in message
    assert word in message


def test_fewer_images_than_the_probe_asks_for(tiny_pipeline_dir, scene_folder):
    message = refusal(tiny_pipeline_dir, scenes(scene_folder), probe_images=16)
    assert (
        "probe 16 training images, but there are 6; lower its `captions` (--trainer.callbacks.plan.captions 6 "
        in message
    )


def test_a_caption_longer_than_the_tokenizer_takes(tiny_pipeline_dir, scene_folder):
    rows = [json.loads(line) for line in (scene_folder / "metadata.jsonl").read_text().splitlines()]
    rows[4]["text"] = "one two three four five six"  # each letter is a token here: 22 and two marks
    (scene_folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refusal(tiny_pipeline_dir, scenes(scene_folder))
    assert (
        f"{scene_folder / '4.png'}: caption of 24 tokens, the model takes 16; shorten it, or set reading.long_captions"
        in message
    )
    with pytest.warns(UserWarning, match=r"4\.png: caption of 24 tokens, the model takes 16; the rest is cut off"):
        check_fit(tiny_pipeline_dir, scenes(scene_folder, long_captions="truncate"))


def test_an_unknown_scheduler(tiny_pipeline_dir, base):
    message = refusal(tiny_pipeline_dir, scheduler="DDIM")
    assert "unknown scheduler 'DDIM'; accepted: DDIMScheduler, " in message
    edit(base / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    assert f"base '{base}': unknown scheduler 'FlowMatchEulerDiscreteScheduler'" in refusal(str(base))
    assert require_scheduler("PNDMScheduler") == "PNDMScheduler"


def test_an_unknown_prediction_type(base):
    edit(base / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "prediction type 'sample' of its scheduler; accepted: epsilon, v_prediction" in refusal(base)


def test_a_hub_id_without_network(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal("someone/no-such-model")
    assert "base 'someone/no-such-model' is a hub id that is not in the local cache" in message
    with pytest.raises(FileNotFoundError, match="download it elsewhere and give its directory") as caught:
        load_pipeline("someone/no-such-model")
    assert "\n" not in str(caught.value)


def test_neither_a_directory_nor_a_hub_id():
    assert "base './nowhere': no such directory or file, and not a hub id" in refusal("./nowhere")


def test_a_configuration_for_another_architecture_names_both(base):
    edit(base / "unet" / "config.json", cross_attention_dim=1024)
    message = refusal(base, architecture="sdxl")
    assert (
        f"base '{base}' is Stable Diffusion 2.x, this configuration is for Stable Diffusion XL; give such a" in message
    )
    edit(base / "unet" / "config.json", cross_attention_dim=2048)
    edit(base / "model_index.json", _class_name="StableDiffusionXLPipeline")
    message = refusal(base, architecture="sd2")
    assert (
        f"base '{base}' is Stable Diffusion XL, this configuration is for Stable Diffusion 2.x; give such a" in message
    )
    assert "this configuration is for" not in refusal(base, architecture="sdxl"), "but its weights are not those of XL"
    assert "this configuration is for Stable Diffusion 3;" in refusal(base, architecture="sd3")


def test_another_kind_of_pipeline(base):
    edit(base / "model_index.json", _class_name="ZImagePipeline")
    able = "a StableDiffusionXLPipeline (SDXL) or a StableDiffusion3Pipeline (SD 3, 3.5) can be fine-tuned"
    assert re.search(rf"is a ZImagePipeline; only a StableDiffusionPipeline .*{re.escape(able)}", refusal(base))
    with pytest.raises(ValueError, match="is a ZImagePipeline"):
        FineTune(str(base))
    edit(base / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(
        ValueError, match="is a FluxPipeline; what can be measured here is one of StableDiffusionPipeline"
    ):
        load_pipeline(base)


def test_a_directory_that_is_not_a_pipeline(tmp_path):
    assert "no model_index.json in it, so not a complete diffusers directory" in refusal(tmp_path)


def test_damaged_files_of_a_model(base):
    (base / "unet" / "config.json").write_text("{")
    assert "unet/config.json is not JSON" in refusal(base)


def test_truncated_weights_are_one_line(base):
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"its files cannot be loaded .* download or copy it again") as caught:
        load_pipeline(base)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_loaded(base):
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="its files cannot be loaded"):
        load_pipeline(base)


def test_a_resolution_the_model_cannot_encode(tiny_pipeline_dir, scene_folder):
    message = refusal(tiny_pipeline_dir, scenes(scene_folder, resolution=33))
    assert "resolution=33 is not a multiple of 2, the model's downsampling factor" in message


def test_all_problems_come_at_once(scene_folder):
    (scene_folder / "1.png").write_bytes(b"hello")
    Image.new("RGB", (8, 8)).save(scene_folder / "extra.png")
    message = refusal("./nowhere", scenes(scene_folder), probe_images=16, scheduler="DDIM")
    assert message.startswith("nothing was trained; 5 problem(s) to solve first:\n- ")
    assert message.count("\n- ") == 5


def test_tinyworld_is_the_packaged_model(monkeypatch, tiny_pipeline_dir):
    monkeypatch.setattr(loading, "model_directory", lambda name: tiny_pipeline_dir)
    assert locate("tinyworld") == tiny_pipeline_dir
    assert load_pipeline("tinyworld").unet.config.sample_size == 16
