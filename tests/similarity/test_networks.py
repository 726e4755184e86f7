from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as edit

from basinguard.core.metric import Metric
from basinguard.similarity.embedder import Embedder, WithThreshold
from basinguard.similarity.networks import clip_network, image_input, onnx_network, timm_network
from basinguard.similarity.preprocessing import IMAGENET, RAW, Preprocessing

SQUARE = Preprocessing((32, 32), "squash", None, *IMAGENET)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """Mean colour of each quarter of the picture, as an ONNX graph."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[16, 16], strides=[16, 16])
    flat = onnx.helper.make_node("Flatten", ["cells"], ["vector"])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", ["B", 3, 32, 32]), ("vector", ["B", 12]))
    ]
    graph = onnx.helper.make_graph([node, flat], "quarters", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path_factory.mktemp("onnx") / "quarters.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_onnx_gives_what_its_graph_says(onnx_file, images):
    embedder = onnx_network(onnx_file, SQUARE)
    assert isinstance(embedder, Embedder)
    quarters = torch.nn.functional.avg_pool2d(SQUARE(images), 16).flatten(1)
    torch.testing.assert_close(embedder(images), torch.nn.functional.normalize(quarters), atol=1e-5, rtol=0)
    assert embedder.metric.threshold == 1.0
    assert "measure one" in embedder.metric.source


@pytest.fixture(scope="module")
def bytes_file(tmp_path_factory):
    """The same, for bytes [1, 32, 32, 3]: as files that normalise themselves and know one image at a time."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[16, 16], strides=[16, 16]),
        onnx.helper.make_node("Flatten", ["cells"], ["vector"]),
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 32, 32, 3])
    vector = onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, [1, 12])
    graph = onnx.helper.make_graph(nodes, "quarters", [image], [vector])
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path_factory.mktemp("onnx") / "bytes.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_onnx_that_takes_bytes_gets_bytes_laid_out_its_way(bytes_file, images):
    raw = Preprocessing((32, 32), "squash", None, *RAW)
    quarters = torch.nn.functional.avg_pool2d((raw(images) * 255).round(), 16).flatten(1)
    embeddings = onnx_network(bytes_file, raw)(images)
    torch.testing.assert_close(embeddings, torch.nn.functional.normalize(quarters), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="would do it twice"):
        onnx_network(bytes_file, SQUARE)


def test_onnx_refuses_a_missing_file_and_one_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such ONNX file"):
        onnx_network(tmp_path / "no.onnx", SQUARE)
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.onnx: not a readable ONNX file"):
        onnx_network(tmp_path / "text.onnx", SQUARE)


class Session:
    """An ONNX session's inputs, without onnxruntime."""

    def __init__(self, *shapes, kind="tensor(float)"):
        self.inputs = [SimpleNamespace(name="x", shape=shape, type=kind) for shape in shapes]

    def get_inputs(self):
        return self.inputs


def test_how_an_onnx_file_wants_its_images():
    first = image_input(Session(["B", 3, 32, 32]), Path("a.onnx"))
    last = image_input(Session([1, "h", "w", 3], kind="tensor(uint8)"), Path("a.onnx"))
    assert (first.channels_last, first.takes_bytes, first.one_by_one) == (False, False, False)
    assert (last.channels_last, last.takes_bytes, last.one_by_one) == (True, True, True)
    assert last.lay_out(torch.ones(1, 3, 4, 5)).shape == (1, 4, 5, 3)
    assert last.lay_out(torch.full((1, 3, 4, 5), 0.5)).max() == 128


@pytest.mark.parametrize(
    "session",
    [
        Session(["B", 12]),
        Session(["B", 3, 8, 8], ["B", 3]),
        Session([7, 3, 8, 8]),
        Session([1] * 4, kind="tensor(int64)"),
    ],
)
def test_what_does_not_take_one_image_is_refused(session):
    with pytest.raises(ValueError, match=r"expected one image, float or bytes"):
        image_input(session, Path("a.onnx"))


def test_a_threshold_of_another_embedder_is_refused(onnx_file):
    embedder = onnx_network(onnx_file, SQUARE)
    own = Metric(embedder=embedder.name, threshold=0.4, source="measured")
    assert WithThreshold(embedder, own).metric.threshold == 0.4
    with pytest.raises(ValueError, match="belongs to another eye"):
        WithThreshold(embedder, own.model_copy(update={"embedder": "another eye"}))


def test_damaged_weights_do_not_return_nan(onnx_file, images):
    embedder = replace(onnx_network(onnx_file, SQUARE), network=lambda x: x.flatten(1) * float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        embedder(images)


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), path)
    return path


def test_timm_equals_its_own_transform_and_model(timm_file):
    import timm

    embedder = timm_network("resnet10t", weights=timm_file)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 260, 3), dtype=np.uint8))
    model = timm.create_model("resnet10t", num_classes=0, checkpoint_path=str(timm_file)).eval()
    prepared = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(picture)[None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(prepared))
    image = edit.to_dtype(edit.to_image(picture), torch.float32, scale=True)[None]
    assert float((embedder(image) * expected).sum()) > 0.9999
    assert "resnet10t" in embedder.name


def test_timm_refuses_an_unknown_model_and_a_file_of_another(timm_file, tmp_path):
    with pytest.raises(ValueError, match="no model 'dino-of-my-dreams'"):
        timm_network("dino-of-my-dreams")
    with pytest.raises(ValueError, match="resnet14t by timm"):
        timm_network("resnet14t", weights=timm_file)
    with pytest.raises(FileNotFoundError, match="no such weight file"):
        timm_network("resnet10t", weights=tmp_path / "no.safetensors")


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_clip_preprocessing_equals_open_clips_own(mode):
    import open_clip

    rows, columns = np.mgrid[:90, :120]
    colours = np.stack([rows * 2, columns * 2, rows + columns], -1).astype(np.uint8)
    config = {"size": 48, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "resize_mode": mode}

    class Tower:
        preprocess_cfg = config

    theirs = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    image = torch.from_numpy(colours).permute(2, 0, 1)[None].float() / 255
    ours = Preprocessing.of_open_clip(Tower)(image)[0]
    expected = theirs(Image.fromarray(colours))
    assert float((ours - expected).abs().max()) < 3 / 255 / 0.2  # their pixels are rounded to bytes on the way


def test_longest_pads_and_keeps_everything():
    prepared = Preprocessing((32, 32), "longest", (32, 32), (0.0,) * 3, (1.0,) * 3)(torch.ones(1, 3, 20, 40))
    assert prepared.shape == (1, 3, 32, 32)
    assert float(prepared[0, 0, 16].min()) == pytest.approx(1.0)
    assert float(prepared[0, 0, 0].max()) == 0.0


def test_clip_image_tower_is_the_one_of_the_score(tiny_clip, images):
    from basinguard.similarity.clip_score import ClipScore

    tower = clip_network(tiny_clip)
    torch.testing.assert_close(tower(images), ClipScore.load(tiny_clip).embed_images(images))
    assert tower.name.endswith("image")
