import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from basinguard.similarity.registry import load_embedder
from basinguard.similarity.structure import Structure


def test_the_offline_default():
    assert load_embedder("structure") == Structure()


def test_clip_from_a_folder_whose_name_has_an_equals_sign(tiny_clip, tmp_path):
    folder = tmp_path / "a=b"
    folder.symlink_to(tiny_clip)
    assert load_embedder(f"clip={folder}").name.endswith("a=b image")


def test_sscd_by_protocol(tmp_path):
    state = {f"backbone.{key}": value for key, value in resnet50(num_classes=512).state_dict().items()}
    save_file(state, tmp_path / "sscd.safetensors")
    eye = load_embedder(f"sscd_disc_mixup_288={tmp_path / 'sscd.safetensors'}")
    assert eye.metric.threshold == 0.75
    assert "disc_mixup_288" in eye.name
    with pytest.raises(FileNotFoundError, match=r"sscd_disc_large\.classy\.pt, published at"):
        load_embedder(f"sscd_disc_large_224={tmp_path / 'no.pt'}")


def test_timm_by_model(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    assert "timm resnet10t" in load_embedder(f"timm/resnet10t={tmp_path / 'w.safetensors'}").name


@pytest.mark.parametrize("text", ["", "sscd", "sscd_disc_mixup_320", "sscd_disc_mixup_320=", "dino=x", "structure=x"])
def test_any_other_word_is_answered_with_those_that_are_known(text):
    with pytest.raises(ValueError, match=r"expected one of structure, structure-figure, sscd_disc_mixup_320="):
        load_embedder(text)
