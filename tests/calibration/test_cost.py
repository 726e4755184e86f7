"""What a calibration takes at most, in closed form; that the bound holds is shown where one runs."""

import doctest

from basinguard.calibration import cost


def test_examples():
    assert doctest.testmod(cost).failed == 0


def test_the_bound_is_said_in_products_samples_and_evaluations():
    assert str(cost.cost((10, 4, 2), (32, 96, 144), 96, 32)) == (
        "searching at most 10 products, ranking 4, then proving 2: at most 1,088 samples, "
        "34,816 evaluations of the network"
    )
