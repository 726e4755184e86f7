import math

import pytest
import torch

from basinguard.core.metric import Metric
from basinguard.similarity import distribution_metrics as module
from basinguard.similarity.distribution_metrics import (
    compare_features,
    fid,
    jackknife,
    kid,
    mifid,
    precision,
    quality,
    recall,
)
from basinguard.similarity.embedder import unit


def normal(n: int, *, seed: int, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).double() + mean


class Cells:
    """An embedder with twelve numbers: the mean colour of each quarter."""

    name = "quarters"
    metric = Metric(embedder="quarters", threshold=1.0, source="none")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return unit(torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) - 0.4)


def test_kid_of_one_distribution_is_near_zero_and_of_two_is_not():
    same = kid(normal(300, seed=0), normal(300, seed=1))
    assert kid(normal(300, seed=0), normal(300, seed=1, mean=1)) > 20 * abs(same)


def test_kid_equals_the_double_sum():
    x, y = normal(9, seed=0), normal(9, seed=1, mean=0.5)

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    inside = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    across = sum(kernel(a, b) for a in x for b in y) / 81
    assert kid(x, y) == pytest.approx(inside - 2 * across, rel=1e-6)


def test_fid_equals_the_closed_form_for_two_gaussians():
    x = normal(4000, seed=0)
    shifted = x * 2 + torch.tensor([1.0, 0, 0, 0]).double()
    mean = (shifted.mean(0) - x.mean(0)).pow(2).sum()
    expected = float(mean + torch.trace(torch.cov(x.T)) * (1 + 4 - 2 * 2))
    assert fid(shifted, x) == pytest.approx(expected, rel=1e-3)


def test_mifid_punishes_a_copy():
    data = normal(200, seed=0)
    near, far = data + 0.02 * normal(200, seed=1), data.flip(1) + 0.02 * normal(200, seed=1)
    assert mifid(near, data) / fid(near, data) > mifid(far, data) / fid(far, data)


def test_precision_falls_outside_and_recall_falls_when_collapsed():
    pytest.importorskip("torch_fidelity")
    data = normal(200, seed=0)
    assert precision(normal(200, seed=1), data) > 0.7
    assert precision(normal(200, seed=1, mean=9), data) == 0.0
    collapsed = normal(200, seed=1) * 0.05
    assert precision(collapsed, data) > 0.9
    assert recall(collapsed, data) < 0.1


def test_jackknife_of_a_mean_difference_has_the_textbook_width():
    x, y = normal(400, seed=0)[:, :1], normal(400, seed=1, mean=0.5)[:, :1]

    def difference(a, b):
        return float(b.mean() - a.mean())

    estimate = jackknife(difference, x, y, name="none")
    textbook = float((x.var() / 400 + y.var() / 400).sqrt()) * 2.262
    assert estimate.value == pytest.approx(difference(x, y))
    assert 0.3 < (estimate.high - estimate.value) / textbook < 2.5


def test_everything_at_once_warns_and_names_the_eye():
    pytest.importorskip("torch_fidelity")
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = Cells()
    with pytest.warns(UserWarning, match="24 images are biased"):
        estimates = quality(images, images.flip(0).roll(3, -1), features)
    assert set(estimates) == {"kid", "fid", "mifid", "precision", "recall"}
    assert all(features.name in e.method and e.n == 24 for e in estimates.values())


def test_inception_without_weights_says_which_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"github\.com/toshas/torch-fidelity.*inception-2015-12-05"):
        quality(torch.rand(24, 3, 32, 32), torch.rand(24, 3, 32, 32))


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.kid", None)
    with pytest.raises(ImportError, match=r"pip install 'torchmetrics\[image\]'"):
        kid(normal(20, seed=0), normal(20, seed=1))


@pytest.mark.parametrize("way", [kid, fid, mifid, precision, recall])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_distance_is_taken_of_features_that_are_not_finite(way, value):
    good = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[3, 1] = value
    with pytest.raises(ValueError, match="1 of 24 samples are NaN or infinite"):
        way(bad, good)
    with pytest.raises(ValueError, match="1 of 24 data are NaN or infinite"):
        way(good, bad)
    with pytest.raises(ValueError, match="1 of 24 data are NaN or infinite"):
        compare_features(good, bad, name="an eye")


def test_refuses_too_few_and_what_does_not_fit():
    with pytest.raises(ValueError, match="at least 20 of each"):
        compare_features(normal(19, seed=0), normal(30, seed=0), name="x")
    with pytest.raises(ValueError, match="expected \\[N, D\\] and \\[M, D\\]"):
        compare_features(normal(30, seed=0)[:, :2], normal(30, seed=0), name="x")
    assert module.RELIABLE >= 2048


def test_fid_and_kid_equal_torch_fidelity():
    fidelity_fid = pytest.importorskip("torch_fidelity.metric_fid")
    fidelity_kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = normal(300, seed=0), normal(300, seed=1, mean=0.5)
    statistics = [fidelity_fid.fid_features_to_statistics(features) for features in (x, y)]
    theirs = fidelity_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid(x, y) == pytest.approx(theirs, rel=1e-6)
    assert kid(x, y) == pytest.approx(float(fidelity_kid.kernel_mmd(x.numpy(), y.numpy(), verbose=False)), rel=1e-6)


def test_precision_and_recall_equal_balls_drawn_by_hand():
    pytest.importorskip("torch_fidelity")
    samples, data = normal(60, seed=0, mean=0.8), normal(50, seed=1)

    def inside(points, centres):
        radius = torch.cdist(centres, centres).sort(1).values[:, 3]  # the centre itself, then 3 neighbours
        return float((torch.cdist(points, centres) <= radius).any(1).float().mean())

    assert precision(samples, data) == pytest.approx(inside(samples, data))
    assert recall(samples, data) == pytest.approx(inside(data, samples))
