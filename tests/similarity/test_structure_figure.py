import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity.embedder import Embedder, embed_all
from basinguard.similarity.registry import load_embedder
from basinguard.similarity.structure import CANVAS, Structure
from basinguard.similarity.structure_figure import StructureFigure, centred, mostly_figures, on_empty_ground
from basinguard.tinyworld.scenes import Caption, draw_scene


def sticker(seed: int, *, ground: float = 1.0) -> Tensor:
    """A figure of four coloured cells, some missing, in the middle of an empty ground, [1, 3, 64, 64]."""
    cells = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 0.7
    image = torch.full((1, 3, 64, 64), ground)
    image[..., 16:48, 16:48] = cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return image


def scenes(count: int) -> Tensor:
    drawn = [draw_scene(Caption("star", "striped", "with eyes"), seed) for seed in range(count)]
    return edit.to_dtype(torch.stack([edit.to_image(d) for d in drawn]), torch.float32, scale=True)


def similarity(a: Tensor, b: Tensor, eye: Embedder) -> float:
    return float(eye(a)[0] @ eye(b)[0])


def moved(image: Tensor, right: int, down: int) -> Tensor:
    return image.roll((down, right), (2, 3))


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda x: moved(x, 9, -7), id="shift"),
        pytest.param(lambda x: edit.resize(x[..., :52, :52], [64, 64], antialias=True), id="crop"),
        pytest.param(
            lambda x: edit.pad(edit.resize(x, [40, 40], antialias=True), [20, 4, 4, 20], fill=1), id="smaller"
        ),
        pytest.param(lambda x: edit.adjust_contrast(moved(x, 4, 4), 1.4).clamp(0, 1), id="shift and contrast"),
        pytest.param(lambda x: (moved(x, 5, 0) + 0.05 * torch.randn(x.shape)).clamp(0, 1), id="shift and noise"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_figure_elsewhere_is_the_same_figure(copy, seed):
    torch.manual_seed(seed)
    original = sticker(seed)
    assert similarity(original, copy(original), StructureFigure()) > 0.85
    assert similarity(original, copy(original), StructureFigure()) > similarity(original, copy(original), Structure())


@pytest.mark.parametrize("seed", range(6))
def test_another_figure_is_not(seed):
    assert similarity(sticker(seed), sticker(seed + 50), StructureFigure()) < StructureFigure().metric.threshold


def test_without_an_empty_ground_it_is_the_other_eye_bit_for_bit():
    images = scenes(12)
    full = images[~on_empty_ground(images)]
    assert len(full) >= 8
    assert torch.equal(StructureFigure()(full), Structure()(full))


def test_the_box_fills_the_canvas():
    canvas = torch.ones(1, 3, CANVAS, CANVAS)
    canvas[..., 10:42, 20:52] = 0.2
    assert float(centred(canvas)[..., 2:-2, 2:-2].max()) < 0.25
    assert torch.equal(centred(torch.ones(1, 3, CANVAS, CANVAS)), torch.ones(1, 3, CANVAS, CANVAS))


def test_a_speck_does_not_move_the_box():
    dirty = sticker(0)
    dirty[..., 60:62, 1:3] = 0.0
    assert similarity(sticker(0), dirty, StructureFigure()) > 0.97


def test_is_an_embedder_of_unit_vectors_that_do_not_depend_on_the_batch():
    images = torch.cat([*(sticker(seed) for seed in range(3)), scenes(3)])
    together = StructureFigure()(images)
    assert isinstance(StructureFigure(), Embedder)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(together, embed_all(images, StructureFigure(), batch=2), atol=1e-5, rtol=0)
    assert StructureFigure().name != Structure().name  # values can differ, so the name does


def test_a_picture_on_a_fully_transparent_or_flat_ground_is_still_seen():
    flat = torch.full((1, 3, 64, 64), 0.5)
    assert similarity(flat, torch.ones(1, 3, 64, 64), StructureFigure()) > 0.99
    assert abs(similarity(flat, sticker(0), StructureFigure())) < 0.1


def test_it_is_of_use_where_most_training_images_are_figures():
    stickers = torch.cat([sticker(seed) for seed in range(4)])
    assert mostly_figures(stickers)
    assert mostly_figures([sticker(0)[0], torch.ones(3, 90, 40)])  # sizes may differ
    assert not mostly_figures(torch.cat([stickers, scenes(4)]))
    assert not mostly_figures(scenes(4))
    assert load_embedder("structure-figure") == StructureFigure()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.zeros(1, 3, 1, 1), "1x1 pixels"),
        (torch.full((1, 3, 64, 64), float("nan")), "nan"),
        (torch.zeros(1, 1, 64, 64), r"\[1, 1, 64, 64\]"),
        (torch.zeros(0, 3, 64, 64), "B >= 1"),
    ],
)
def test_refuses_what_it_cannot_see(images, says):
    with pytest.raises(ValueError, match=says):
        StructureFigure()(images)
