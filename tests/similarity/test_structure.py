import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity.embedder import Embedder, embed_all
from basinguard.similarity.structure import CANVAS, Structure, structure_band, to_opponent
from basinguard.tinyworld.scenes import Caption, draw_scene

THRESHOLD = Structure().metric.threshold


def scene(seed: int, *, kind: str = "star") -> Tensor:
    picture = edit.to_image(draw_scene(Caption(kind, "striped", "with eyes"), seed))
    return edit.to_dtype(picture, torch.float32, scale=True)[None]


def similarity(a: Tensor, b: Tensor) -> float:
    return float(Structure()(a)[0] @ Structure()(b)[0])


def test_is_an_embedder():
    assert isinstance(Structure(), Embedder)
    assert Structure().metric.embedder == Structure().name


def test_gives_unit_vectors_and_does_not_depend_on_the_batch():
    images = torch.cat([scene(seed) for seed in range(5)])
    together = Structure()(images)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(together, embed_all(images, Structure(), batch=2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda x: edit.gaussian_blur(x, [5, 5], [1.2, 1.2]), id="blur"),
        pytest.param(lambda x: edit.adjust_saturation(x, 2.5).clamp(0, 1), id="over-saturation"),
        pytest.param(lambda x: edit.adjust_contrast(x, 1.5).clamp(0, 1), id="contrast"),
        pytest.param(lambda x: x * 0.7, id="darker"),
        pytest.param(lambda x: F.interpolate(x, (40, 52), mode="bilinear", antialias=True), id="other shape"),
        pytest.param(lambda x: F.pad(x, (2, 0, 1, 0), mode="replicate")[..., :64, :64], id="shift"),
    ],
)
def test_a_copy_stays_above_the_threshold(copy, seed):
    assert similarity(scene(seed), copy(scene(seed))) > THRESHOLD


@pytest.mark.parametrize("seed", range(8))
def test_another_scene_with_the_same_caption_stays_below(seed):
    assert similarity(scene(seed), scene(seed + 100)) < THRESHOLD


def test_saturation_and_contrast_hardly_move_it_without_clipping():
    image = 0.25 + 0.5 * scene(1)
    grey = image.mean(1, keepdim=True)
    assert similarity(image, grey + 1.4 * (image - grey)) > 0.99
    assert similarity(image, (image - 0.5) * 1.5 + 0.5) > 0.995


def test_a_band_of_a_flat_image_is_zero_and_of_a_spot_is_where_the_spot_is():
    flat = torch.full((1, 3, CANVAS, CANVAS), 0.5)
    torch.testing.assert_close(structure_band(to_opponent(flat), 8), torch.zeros(1, 3, 8, 8), atol=1e-4, rtol=0)
    spot = flat.clone()
    spot[..., 40:48, 16:24] = 1.0
    peak = int(structure_band(to_opponent(spot), 8)[0, 0].argmax())
    assert (peak // 8, peak % 8) == (5, 2)


def test_an_empty_image_is_like_another_empty_one_and_like_no_scene():
    white, grey = torch.ones(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.5)
    assert similarity(white, grey) > 0.99
    assert abs(similarity(white, scene(0))) < 0.1


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "uint8"),
        ("a picture", TypeError, "str"),
        (torch.zeros(1, 1, 64, 64), ValueError, r"\[1, 1, 64, 64\]"),
        (torch.zeros(3, 64, 64), ValueError, r"\[3, 64, 64\]"),
        (torch.zeros(0, 3, 64, 64), ValueError, "B >= 1"),
        (torch.zeros(1, 3, 1, 1), ValueError, "1x1 pixels"),
        (torch.full((1, 3, 64, 64), float("nan")), ValueError, "nan"),
        (torch.full((1, 3, 64, 64), 1.5), ValueError, "1.5"),
        (torch.full((1, 3, 64, 64), -1.0), ValueError, "-1.0"),
    ],
)
def test_refuses_what_it_cannot_see(images, error, says):
    with pytest.raises(error, match=says):
        Structure()(images)


def test_one_nan_pixel_is_refused():
    images = torch.rand(2, 3, 64, 64)
    images[1, 2, 5, 7] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        Structure()(images)
