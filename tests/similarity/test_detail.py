"""Mush and noise are told from pictures; what is like the truth is not."""

import doctest

import pytest
import torch

from basinguard.similarity import detail
from basinguard.similarity.detail import look_at


def test_examples():
    assert doctest.testmod(detail).failed == 0


@pytest.fixture
def truth():
    """Squares of 4 px, drawn sharply."""
    cells = (torch.arange(32)[:, None] // 4 + torch.arange(32) // 4) % 2
    return cells.float().expand(5, 3, 32, 32)


def test_a_heavy_blur_is_mush_and_the_truth_itself_is_not(truth):
    blurred = torch.nn.functional.avg_pool2d(truth, 8, 1, 4)[..., :32, :32]
    assert "mush" in look_at(blurred, truth)
    assert look_at(truth.flip(-1), truth) == ""


def test_noise_on_a_smooth_picture_is_told(truth):
    smooth = torch.linspace(0, 1, 32).expand(5, 3, 32, 32)
    assert "noise" in look_at(torch.rand(5, 3, 32, 32), smooth * 0.9)


def test_truth_of_another_size_is_compared_at_the_size_of_the_samples(truth):
    assert look_at(truth, torch.nn.functional.interpolate(truth, scale_factor=2)) == ""
    assert look_at(truth[:0], truth) == ""
