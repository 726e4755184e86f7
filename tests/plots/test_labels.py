"""No label of the trade-off is written over another, and lines are told apart without their colours."""

import doctest
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from basinguard.guard.status import run_status
from basinguard.plots import tradeoff
from basinguard.plots.run import learning_figure
from basinguard.plots.style import BLUE, GREEN, VERMILLION, banded_line
from support.reports import base, near, report

pytestmark = pytest.mark.usefixtures("drawn_figures")


def test_examples():
    assert doctest.testmod(tradeoff).failed == 0


def test_lines_differ_in_their_markers():
    axes = Figure().subplots()
    for colour in (BLUE, GREEN, VERMILLION):
        banded_line(axes, [0, 1], [near(0.1), near(0.2)], colour, colour)
    assert len({line.get_marker() for line in axes.lines}) == 3


def test_epochs_are_ticked_at_whole_numbers_and_no_title_runs_out_of_the_picture():
    history = [base(), report(0, 20, transition=None)]
    figure = learning_figure(history, run_status(history, 0.1))
    figure.canvas.draw()
    (axes,) = figure.axes
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    title = axes._left_title.get_window_extent()
    assert title.x1 <= figure.bbox.x1


def test_products_that_nothing_places_leave_no_empty_picture():
    nothing = SimpleNamespace(left=None, alignment=None, risk=near(0.1), proven=False)
    certificate = SimpleNamespace(tried=(), plain=nothing, shipped=nothing, record=SimpleNamespace(alpha=0.1))
    (axes,) = tradeoff.products_figure(certificate).axes
    assert [text.get_text() for text in axes.texts] == [tradeoff.UNPLACED]
    nothing.alignment = near(0.3)
    (axes,) = tradeoff.products_figure(certificate).axes
    assert not axes.texts
