"""What loggers show first, and on which chart."""

import doctest

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from basinguard.guard.status import run_status
from basinguard.plots.run import learning_figure
from basinguard.training import logging
from basinguard.training.logging import FIRST, add_margin_charts, scalars, tag
from support.reports import base, near, report

HISTORY = [base(taught=near(0.0, 0.1)), report(0, taught=near(0.3, 0.1)), report(4, 12, taught=near(0.5, 0.1))]


def test_examples():
    assert doctest.testmod(logging).failed == 0


def test_few_scalars_come_first():
    values = scalars(HISTORY, run_status(HISTORY, 0.1))
    assert values["guard/taught"] == 0.5
    first = {tag(name) for name in values if "details" not in tag(name)}
    assert {"guard/risk", "guard/taught", "guard/verdict"} <= first
    assert len(first) <= len(FIRST)


def test_risk_and_taught_share_a_chart_with_their_intervals(tmp_path):
    with SummaryWriter(tmp_path) as board:
        add_margin_charts(board)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    series = layout.category[0].chart[0].margin.series
    assert [(s.value, s.lower, s.upper) for s in series] == [
        ("guard/risk", "guard/details/risk_low", "guard/details/risk_high"),
        ("guard/taught", "guard/details/taught_low", "guard/details/taught_high"),
    ]


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1]])
def test_the_picture_of_both_names_the_epoch_to_ship(history):
    figure = learning_figure(history, run_status(history, 0.15))
    figure.canvas.draw()
    assert len(figure.axes[0].lines) >= 4
    title = figure.axes[0].get_title(loc="left")
    assert ("plain epoch 0 (dotted)" in title) == (len(history) > 1)
