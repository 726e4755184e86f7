import pytest
import torch
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity.local_copies import compare_locally, largest_region, mark_copied, window_correlation
from basinguard.tinyworld.scenes import Caption, draw_scene


def scene(seed: int, kind: str = "star") -> torch.Tensor:
    return edit.to_dtype(edit.to_image(draw_scene(Caption(kind, "striped"), seed)), torch.float32, scale=True)


@pytest.mark.parametrize("seed", range(6))
def test_a_blurred_oversaturated_copy_is_verbatim(seed):
    copy = edit.adjust_saturation(edit.gaussian_blur(scene(seed), [3, 3], [0.7, 0.7]), 2.0).clamp(0, 1)
    assert compare_locally(copy, scene(seed)).kind == "verbatim"
    noise = 0.05 * torch.randn(copy.shape, generator=torch.Generator().manual_seed(seed))
    assert compare_locally((copy + noise).clamp(0, 1), scene(seed)).kind == "verbatim"


@pytest.mark.parametrize("seed", range(6))
def test_another_scene_with_the_same_caption_is_none(seed):
    comparison = compare_locally(scene(seed + 50), scene(seed))
    assert comparison.kind == "none"
    assert comparison.share < 0.25


def test_a_shared_half_is_a_template_and_the_mask_says_where():
    sample = scene(1).clone()
    sample[:, :, 32:] = scene(60, "fish")[:, :, 32:]
    comparison = compare_locally(sample, scene(1))
    assert comparison.kind == "template"
    left, right = (torch.nan_to_num(half).mean() for half in (comparison.mask[:, :4], comparison.mask[:, -4:]))
    assert float(left) > 0.6 > 0.2 > float(right)


def test_a_mirrored_copy_is_laid_over_the_right_way():
    assert compare_locally(scene(3).flip(-1), scene(3), mirrored=True).kind == "verbatim"
    assert compare_locally(scene(3).flip(-1), scene(3)).kind != "verbatim"


@pytest.mark.parametrize("seed", range(4))
def test_a_gray_copy_is_a_copy(seed):
    assert compare_locally(edit.rgb_to_grayscale(scene(seed), 3), scene(seed)).kind == "verbatim"


def test_the_overlay_ends_where_the_copy_ends():
    sample, train = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sample, train = (edit.gaussian_blur(x, [9, 9], [2.0, 2.0]) for x in (sample, train))
    sample, train = ((x - x.mean()) * 4 + 0.5 for x in (sample, train))
    sample = torch.cat([train[..., :32], sample[..., 32:]], 2).clamp(0, 1)
    shown = mark_copied(sample, compare_locally(sample, train.clamp(0, 1)))
    unchanged = (shown == sample).all(0).float().mean(0)
    assert float(unchanged[:28].min()) > 0.8
    assert float(unchanged[40:].max()) < 0.2


def test_empty_images_cannot_tell():
    comparison = compare_locally(torch.zeros(3, 64, 64), torch.ones(3, 64, 64))
    assert (comparison.kind, comparison.share, comparison.windows) == ("none", 0.0, 0)
    assert bool(comparison.mask.isnan().all())


def test_sizes_may_differ():
    large = edit.resize(scene(2), [200, 160], antialias=True)
    assert compare_locally(large, scene(2)).kind == "verbatim"


def test_correlation_of_an_image_with_itself_and_its_negative():
    image = scene(4)[None]
    same, telling = window_correlation(image, image)
    against, _ = window_correlation(image, 1 - image)
    assert float(same[telling].min()) == pytest.approx(1, abs=1e-4)
    assert float(against[telling].median()) < 0


def test_largest_region_counts_what_is_connected():
    mask = torch.zeros(4, 4)
    mask[0, :3] = 1
    mask[3, 3] = 1
    assert largest_region(mask) == pytest.approx(3 / 16)
    assert largest_region(torch.zeros(4, 4)) == 0.0


def test_overlay_keeps_the_copied_part_and_greys_the_rest():
    sample = scene(1).clone()
    sample[:, :, 32:] = scene(60, "fish")[:, :, 32:]
    shown = mark_copied(sample, compare_locally(sample, scene(1)))
    assert shown.shape == sample.shape
    unchanged = (shown == sample).all(0)
    assert float(unchanged[:, :16].float().mean()) > 0.4
    assert float(unchanged[:, -16:].float().mean()) < 0.4


def test_nan_is_refused():
    with pytest.raises(ValueError, match="nan"):
        compare_locally(scene(0), torch.full((3, 64, 64), float("nan")))
