"""Kernel distance as a mean over samples: the published number, its closed form, and an interval that covers it."""

import numpy as np
import pytest
import torch

from basinguard.core import stats
from basinguard.similarity.distribution_metrics import kid
from basinguard.similarity.kernel_distance import FEWEST, KernelDistance, kernel_shares


def directions(angles):
    return torch.stack([torch.cos(angles), torch.sin(angles)], 1)


def angles(count, spread, seed, centre=0.0):
    return centre + spread * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def true_term(variance, gap=0.0):
    """E[(cos d + 1)^3] for d ~ N(gap, variance), where cos(k d) averages to cos(k gap) exp(-k^2 variance / 2)."""
    mean = [np.cos(k * gap) * np.exp(-(k**2) * variance / 2) for k in range(4)]
    return (mean[3] + 3 * mean[1]) / 4 + 3 * (1 + mean[2]) / 2 + 3 * mean[1] + 1


def test_the_mean_is_kid_of_features_with_coordinates_of_size_one():
    x, y = directions(angles(40, 0.5, 0)), directions(angles(40, 0.9, 1, centre=0.4))
    scale = 2**0.5
    assert float(kernel_shares(x, y).mean()) == pytest.approx(kid(x * scale, y * scale), rel=1e-9)


def test_the_distance_of_two_known_distributions_is_the_closed_form():
    x, y = directions(angles(1500, 0.5, 0)), directions(angles(1500, 0.3, 1, centre=0.7))
    expected = true_term(2 * 0.25) + true_term(2 * 0.09) - 2 * true_term(0.25 + 0.09, gap=0.7)
    assert float(kernel_shares(x, y).mean()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(
    ("spread", "centre", "least"),
    [(0.3, 0.5, 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5), (0.5, 0.0, 0.75)],
    ids=["apart", "alike, where the first order vanishes"],
)
def test_the_interval_covers_the_distance_to_the_given_images(spread, centre, least):
    reference = directions(angles(64, spread, 99, centre))
    inside = ((reference @ reference.T + 1) ** 3).fill_diagonal_(0).sum() / (64 * 63)
    across = np.mean([true_term(0.25, gap) for gap in angles(64, spread, 99, centre).tolist()])
    truth = true_term(2 * 0.25) - 2 * across + float(inside)
    covered = 0
    for seed in range(200):
        shares = kernel_shares(directions(angles(96, 0.5, 1000 + seed)), reference)
        estimate = stats.cluster_bootstrap(shares, np.arange(96))
        covered += estimate.low <= truth <= estimate.high
    assert covered / 200 >= least


def test_an_even_round_of_prompts_is_as_far_as_random_prompts_are():
    """Four prompts at their own angles; the reference has the same mixture, so the distance is 0."""
    centres, prompt = torch.tensor([0.0, 1.2, 2.6, 4.0]), torch.arange(4).repeat_interleave(3)

    def draw(seed):
        return directions(centres[prompt] + angles(12, 0.4, seed))

    aware, blind = [], []
    for seed in range(400):
        x, y = draw(seed), draw(10_000 + seed)
        aware.append(float(kernel_shares(x, y, prompt, prompt).mean()))
        blind.append(float(kernel_shares(x, y).mean()))
    error = np.std(aware) / 20
    assert abs(np.mean(aware)) < 3 * error
    assert np.mean(blind) < -10 * error


def test_a_repeated_cluster_widens_the_interval():
    x, reference = directions(angles(24, 0.5, 0)), directions(angles(32, 0.3, 1, centre=0.5))
    four = kernel_shares(x.repeat_interleave(4, 0), reference)
    apart = stats.cluster_bootstrap(four, np.arange(96))
    together = stats.cluster_bootstrap(four, np.repeat(np.arange(24), 4))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_it_names_what_it_measured_and_refuses_too_few_images():
    def eye(images):
        return torch.nn.functional.normalize(images.flatten(1), dim=1)

    images = torch.rand(FEWEST, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    distance = KernelDistance.to_images(eye, images, name="an eye", what="held-out images")
    assert distance.method == f"kernel distance to {FEWEST} held-out images (lower is better), an eye"
    assert distance(images[:5]).shape == (5,)
    with pytest.raises(ValueError, match=f"3 reference images given; a kernel distance needs at least {FEWEST}"):
        KernelDistance.to_images(eye, images[:3], name="an eye", what="held-out images")
    with pytest.raises(ValueError, match="at least 2 each"):
        kernel_shares(torch.ones(1, 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"expected \[N, D\] and \[M, D\]"):
        kernel_shares(torch.ones(4, 2), torch.ones(4, 3))
