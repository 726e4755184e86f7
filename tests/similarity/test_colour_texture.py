import math

import pytest
import torch

from basinguard.similarity.colour_texture import (
    ColourTexture,
    gradient,
    histogram,
    log_energy,
    moments,
    octave,
    octave_band,
    opponent_planes,
    orientation,
)


def test_there_are_71_and_26_of_them_at_every_size():
    for height, width in ((16, 16), (64, 48), (300, 520)):
        features = ColourTexture()(torch.rand(2, 3, height, width))
        assert {name: list(f.shape) for name, f in features.items()} == {"colour": [2, 71], "texture": [2, 26]}
        assert all(bool(torch.isfinite(f).all()) for f in features.values())


def test_opponent_planes_of_pure_colours():
    yellow = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert opponent_planes(yellow).flatten().tolist() == pytest.approx([0.886, 0, 1])


def test_moments_of_a_plane_with_one_bright_quarter():
    plane = torch.zeros(1, 1, 2, 2)
    plane[..., 0, 0] = 1  # mean 1/4, variance 3/16, third moment (27/64 - 3/64) / 4
    assert moments(plane)[0].tolist() == pytest.approx([0.25, math.sqrt(3 / 16), (24 / 256) ** (1 / 3)])


def test_white_falls_into_the_last_bin():
    assert histogram(torch.tensor([[[0.0, 0.49, 0.51, 1.0]]]))[0].tolist() == [0.25, 0, 0, 0.25, 0.25, 0, 0, 0.25]


@pytest.mark.parametrize(("direction", "near"), [((1, 0), 0), ((1, 1), 1), ((0, 1), 2), ((1, -1), 3)])
def test_a_ramp_has_one_orientation(direction, near):
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    dx, dy = gradient(((direction[0] * x + direction[1] * y) / 16)[None, None])
    shares = orientation(dx[:, 0], dy[:, 0])[0]
    assert int(shares.argmax()) == near
    assert float(shares[near]) == pytest.approx(1, abs=1e-3)


def test_a_checkerboard_lives_in_the_finest_band():
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float()[None, None]
    assert float(log_energy(octave_band(board, 0) ** 2)) == pytest.approx(
        math.log(0.25), abs=1e-4
    )  # +-1/2 about its mean
    assert float((octave_band(board, 1) ** 2).max()) == 0
    assert float(octave(board, 1).std()) == 0
