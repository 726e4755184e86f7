"""No label of the trade-off is written over another, and lines are told apart without their colours."""

import doctest

from matplotlib.figure import Figure

from basinguard.plots import tradeoff
from basinguard.plots.style import BLUE, GREEN, VERMILLION, banded_line
from support.reports import near


def test_examples():
    assert doctest.testmod(tradeoff).failed == 0


def test_lines_differ_in_their_markers():
    axes = Figure().subplots()
    for colour in (BLUE, GREEN, VERMILLION):
        banded_line(axes, [0, 1], [near(0.1), near(0.2)], colour, colour)
    assert len({line.get_marker() for line in axes.lines}) == 3
