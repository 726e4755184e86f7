import math

import pytest
import torch

from basinguard.similarity.distance_ratio import COPY_RATIO, distance_ratio


def on_circle(*degrees: float) -> torch.Tensor:
    turns = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([turns.cos(), turns.sin()], 1)


def chord(degrees: float) -> float:
    return 2 * math.sin(math.radians(degrees) / 2)


def test_ratio_of_known_distances():
    ratios = distance_ratio(on_circle(10, 45), on_circle(0, 90))
    assert ratios.tolist() == pytest.approx([chord(10) / chord(80), 1.0])
    assert ratios[0] < COPY_RATIO < ratios[1]


def test_a_duplicate_hides_a_copy_unless_groups_are_known():
    train = on_circle(0, 0, 90)
    assert float(distance_ratio(on_circle(10), train)) == pytest.approx(1.0)
    assert float(distance_ratio(on_circle(10), train, [7, 7, 3])) == pytest.approx(chord(10) / chord(80))


def test_an_exact_copy_is_zero_and_two_exact_ones_are_no_evidence():
    assert float(distance_ratio(on_circle(0), on_circle(0, 90))) == 0.0
    assert float(distance_ratio(on_circle(0), on_circle(0, 0))) == 1.0


def test_refuses_a_single_group():
    with pytest.raises(ValueError, match="needs 2 groups"):
        distance_ratio(on_circle(0), on_circle(0, 90), [1, 1])
    with pytest.raises(ValueError, match="1 groups given for 2"):
        distance_ratio(on_circle(0), on_circle(0, 90), [1])
