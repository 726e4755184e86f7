"""What loggers show first, and on which chart."""

import doctest

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from basinguard.guard.status import run_status
from basinguard.plots.run import learning_figure
from basinguard.similarity.colour_texture import ColourTexture
from basinguard.training import guarded_run, logging
from basinguard.training.guard_options import ControlGroup
from basinguard.training.logging import FIRST, add_margin_charts, scalars, tag
from support.guarded_runs import fit, make_guard, picture_folder
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
        ("guard/risk", "guard_details/risk_low", "guard_details/risk_high"),
        ("guard/taught", "guard_details/taught_low", "guard_details/taught_high"),
    ]


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1]])
def test_the_picture_of_both_names_the_epoch_to_ship(history):
    figure = learning_figure(history, run_status(history, 0.15))
    figure.canvas.draw()
    assert len(figure.axes[0].lines) >= 4
    title = figure.axes[0].get_title(loc="left")
    assert ("plain epoch 1 (dotted)" in title) == (len(history) > 1)


@pytest.mark.long  # watching/test_measuring.py has a run with stand-ins
def test_a_run_with_stand_ins_shows_what_it_has_learnt(tiny_pipeline_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(guarded_run, "feature_sets", lambda: (ColourTexture(),))
    guard = make_guard(plan={"taught": True}, control=ControlGroup())
    board = TensorBoardLogger(tmp_path, name="run", version="v")
    fit(tiny_pipeline_dir, picture_folder(tmp_path / "pictures", 6), tmp_path, guard, epochs=1, logger=board)
    taught = [report.heldout.taught for report in guard.history]
    assert all(taught), [report.heldout.taught_problem for report in guard.history]
    assert taught[0].value == pytest.approx(0, abs=0.02)
    events = EventAccumulator(str(tmp_path / "run" / "v"))
    events.Reload()
    assert [round(event.value, 4) for event in events.Scalars("guard/taught")] == [round(t.value, 4) for t in taught]
    assert "guard/risk_and_taught" in events.Tags()["images"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
