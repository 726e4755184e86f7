import pytest
import torch

from basinguard.similarity.pixel_distances import DELTA, adaptive_l2, l2, tiled_l2


def grey(value: float, side: int = 64) -> torch.Tensor:
    return torch.full((1, 3, side, side), value)


def test_l2_of_a_constant_difference():
    assert float(l2(grey(0.2), grey(0.6))) == pytest.approx(0.4)
    assert float(tiled_l2(grey(0.2), grey(0.6))) == pytest.approx(0.4)


def test_one_tile_that_differs_is_enough():
    other = grey(0.5)
    other[..., 16:32, 48:64] = 1.0
    assert float(l2(grey(0.5), other)) == pytest.approx(0.5 / 4)
    assert float(l2(grey(0.5), other)) < DELTA < float(tiled_l2(grey(0.5), other)) == pytest.approx(0.5)


def test_equals_sixteen_tiles_cut_by_hand():
    a, b = (torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    tiles = [
        l2(a[..., y : y + 16, x : x + 8], b[..., y : y + 16, x : x + 8])
        for y in range(0, 64, 16)
        for x in range(0, 32, 8)
    ]
    torch.testing.assert_close(tiled_l2(a, b), torch.stack(tiles).max(0).values)


def test_adaptive_distance_of_known_numbers():
    train = torch.cat([grey(0.5)] + [grey(0.9)] * 60)
    distances = adaptive_l2(grey(0.6)[0], train)
    mean = (0.1 + 49 * 0.3) / 50
    assert float(distances[0]) == pytest.approx(0.1 / (0.5 * mean), rel=1e-4)
    assert float(distances[1]) == pytest.approx(0.3 / (0.5 * mean), rel=1e-4)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="resize them alike"):
        tiled_l2(grey(0.0), grey(0.0, side=32))
    with pytest.raises(ValueError, match="4 divides"):
        tiled_l2(grey(0.0, side=63), grey(0.0, side=63))
    with pytest.raises(ValueError, match="more than 50"):
        adaptive_l2(grey(0.0)[0], grey(0.0).expand(50, -1, -1, -1))
    with pytest.raises(ValueError, match="nan"):
        l2(grey(0.0), grey(float("nan")))
