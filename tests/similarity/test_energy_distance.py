import numpy as np
import pytest
import torch

from basinguard.similarity.energy_distance import energy_distance, mean_apart, mean_between, pair_distances


def test_two_points_against_two_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [6.0]])
    assert energy_distance(x, y) == 2 * (4 + 6 + 3 + 5) / 4 - 1 - 2


@pytest.mark.long  # the library compiles itself first
def test_agrees_with_an_independent_library():
    dcor = pytest.importorskip("dcor")
    x, y = torch.randn(13, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64) + 0.3
    expected = dcor.energy_distance(x.numpy(), y.numpy(), estimation_stat=dcor.EstimationStatistic.U_STATISTIC)
    assert energy_distance(x, y) == pytest.approx(float(expected), rel=1e-10)


def test_is_unbiased_for_two_normal_distributions():
    # E|x - y| of normals with sd 1 is 2/sqrt(pi) for equal means; with a shift d it is sd sqrt(2) times the mean of a
    # folded normal
    rng, shift, root = np.random.default_rng(0), 0.7, np.sqrt(2)
    from scipy.stats import foldnorm

    expected = 2 * foldnorm.mean(shift / root, scale=root) - 2 * 2 / np.sqrt(np.pi)
    draws = [
        energy_distance(torch.from_numpy(rng.normal(size=(4, 1))), torch.from_numpy(rng.normal(shift, size=(6, 1))))
        for _ in range(2000)
    ]
    assert abs(np.mean(draws) - expected) < 3.5 * np.std(draws) / np.sqrt(len(draws))


def test_whole_weights_are_repeated_rows():
    x, y = torch.randn(4, 3), torch.randn(5, 3)
    weights = torch.tensor([[1.0, 2, 0, 1]], dtype=torch.float64)
    repeated = x[[0, 1, 1, 3]]
    even = torch.ones(1, 5, dtype=torch.float64)
    assert mean_between(pair_distances(x, y), weights, even).item() == pytest.approx(
        pair_distances(repeated, y).mean().item()
    )
    unit = torch.tensor([0, 1, 1, 3])  # the same row drawn twice is one unit: its distance of 0 does not count
    assert mean_apart(pair_distances(x, x), weights, torch.arange(4)).item() == pytest.approx(
        mean_apart(pair_distances(repeated, repeated), torch.ones(1, 4, dtype=torch.float64), unit).item()
    )


@pytest.mark.parametrize(("n", "m", "d"), [(1, 3, 2), (3, 1, 2), (3, 3, 4)])
def test_what_has_no_distance_is_refused(n, m, d):
    with pytest.raises(ValueError, match="two rows or more"):
        energy_distance(torch.zeros(n, 2), torch.zeros(m, d))
