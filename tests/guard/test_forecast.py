"""The forecast: arithmetic in closed form, silence where evidence is missing, and what was published of it."""

import json
import math
from pathlib import Path

import pytest

from basinguard.core.report import Report
from basinguard.guard import forecast as module
from basinguard.guard.forecast import Coefficients, forecast, forecast_features, log_time_left
from basinguard.guard.status import run_status
from support.reports import base, near, report

ALLOWED = 0.15
STUDY = Path(__file__).parents[2] / "recipes" / "results" / "acting_study.json"
TWICE = Coefficients(
    constant=math.log(2), gap=0, scale=0, width=0, low=-math.log(1.5), high=math.log(3), level=0.8, n=9
)


def risen(epoch, **changes):
    return report(epoch, **{"gap_excess": near(0.004, 0.001), "sigma_c_excess": near(0.5, 0.1), **changes})


def test_twice_as_long_as_so_far_is_as_many_epochs_again(monkeypatch):
    monkeypatch.setattr(module, "TINYWORLD", TWICE)
    prediction = forecast([base(), risen(9)], ALLOWED)
    assert prediction.state == "ahead"
    assert prediction.epochs.value == pytest.approx(10)
    assert prediction.epochs.low == pytest.approx(10 / 3)
    assert prediction.epochs.high == pytest.approx(50)
    assert (prediction.epochs.level, prediction.epochs.n) == (0.8, 9)
    assert str(prediction).startswith(
        "breach in 10 [3, 50] epochs, 80% interval (learnt on TinyWorld, from gap excess 0.004"
    )


def test_the_end_of_an_interval_never_lies_in_the_past(monkeypatch):
    monkeypatch.setattr(module, "TINYWORLD", Coefficients(-1, 0, 0, 0, -1, 1, 0.8, 9))
    assert forecast([base(), risen(9)], ALLOWED).epochs.low == 0


def test_time_left_is_linear_in_what_has_risen():
    coefficients = Coefficients(1.0, -0.5, -0.25, -3.0, 0, 0, 0.8, 9)
    risen_report = risen(9, width=near(0.02, 0.01))
    assert forecast_features(risen_report) == pytest.approx((math.log(0.004), math.log(0.5), 0.02))
    wanted = 1 - 0.5 * math.log(0.004) - 0.25 * math.log(0.5) - 3 * 0.02
    assert log_time_left(risen_report, coefficients) == pytest.approx(wanted)


def test_what_has_not_risen_counts_as_the_noise_of_its_measure():
    still = risen(9, gap_excess=near(-0.01), sigma_c_excess=near(-1.0))
    assert forecast_features(still)[:2] == pytest.approx((math.log(3e-4), math.log(0.03)))


@pytest.mark.parametrize(
    ("history", "state", "why"),
    [
        ([], "unknown", "nothing has been measured"),
        ([base()], "unknown", "only the base model"),
        ([base(), Report.missed(3, 32, "no memory")], "unknown", "the probe of epoch 4 failed"),
        ([base(), report(3)], "unknown", "the gap has no control group"),
        ([base(), risen(3, hits=12, transition=600.0)], "passed", "plain CFG is above 0.15 at epoch 4"),
    ],
)
def test_no_number_without_evidence(history, state, why):
    prediction = forecast(history, ALLOWED)
    assert (prediction.state, prediction.epochs) == (state, None)
    assert why in prediction.why


def test_without_a_critical_scale_the_coefficients_learnt_without_it_are_used(monkeypatch):
    monkeypatch.setattr(module, "WITHOUT_SCALE", TWICE)
    assert forecast([base(), risen(9, sigma_c_excess=None)], ALLOWED).epochs.n == 9


def test_where_a_run_stands_survives_json_and_reads_as_text():
    status = run_status([base(), risen(9)], ALLOWED, ["what nobody measured"])
    assert type(status).from_json(status.to_json()) == status
    text = str(status)
    assert text.startswith("**basin forming**, risk under plain CFG 0.00")
    for words in ("Forecast: breach in", "- for plain CFG, epoch 10", "- not known: what nobody measured"):
        assert words in text


@pytest.mark.parametrize(
    ("constant_name", "name", "used"),
    [("TINYWORLD", "gap, critical scale, width", "gap scale width"), ("WITHOUT_SCALE", "gap, width", "gap width")],
)
def test_the_coefficients_are_those_of_the_published_study(constant_name, name, used):
    study, mine = json.loads(STUDY.read_text())["forecast"][name], getattr(module, constant_name)
    constants = (mine.constant, *(getattr(mine, part) for part in used.split()))
    assert constants == pytest.approx(study["coefficients"], abs=5e-4)
    assert (mine.low, mine.high) == pytest.approx(study["interval"], abs=5e-4)
    assert (mine.level, mine.n) == (study["wanted_coverage"], study["runs"])
