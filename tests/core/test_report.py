"""A report is made of parts and stays flat in JSON."""

import json
from pathlib import Path

import pytest

from basinguard.core.report import Report
from basinguard.core.report_parts import Gaps, Samples

RESULTS = Path(__file__).parents[2] / "recipes" / "results"
EMPTY = {"taught_rulers": [], "taught_problem": ""}  # of a key that a history does not have yet, where it is not None


def history_of(name):
    return json.loads((RESULTS / f"{name}.json").read_text())["history"]


@pytest.mark.parametrize("name", ["demo", "basin_study"])
def test_a_history_written_flat_is_read_into_parts_and_written_back_unchanged(name):
    for flat in history_of(name):
        report = Report.from_json(json.dumps(flat))
        again = json.loads(report.to_json())
        assert flat.pop("fidelity", None) is None  # a key of earlier versions
        assert {key: again[key] for key in flat} == flat
        since = {key: value for key, value in again.items() if key not in flat}
        assert since == {key: EMPTY.get(key) for key in since}
        assert Report.from_json(report.to_json()) == report


def test_a_key_that_is_retired_is_read_over():
    flat = history_of("demo")[-1]
    assert Report.from_json(json.dumps(flat | {"fidelity": None})) == Report.from_json(json.dumps(flat))
    with pytest.raises(ValueError, match="loyalty"):
        Report.from_json(json.dumps(flat | {"loyalty": None}))


def test_the_keys_keep_their_order_and_estimates_their_names():
    report = Report.from_json(json.dumps(history_of("demo")[-1]))
    assert list(json.loads(report.to_json())) == [
        "epoch",
        "train_step",
        "risk",
        "width",
        "exit",
        "transition",
        "gap",
        "gap_heldout",
        "similarity_p95",
        "similarity_heldout",
        "risk_uncond",
        "alignment",
        "curve",
        "exits",
        "unet_evals",
        "seconds",
        "problem",
        "log_width",
        "gap_since_base",
        "gap_excess",
        "gap_auc",
        "sigma_c",
        "sigma_c_uncond",
        "sigma_c_since_base",
        "sigma_c_excess",
        "caption_gap",
        "groups",
        "images",
        "probed",
        "precision",
        "note",
        "alignment_heldout",
        "taught",
        "taught_rulers",
        "taught_problem",
        "risk_alone",
    ]
    assert report.estimates["gap_excess"] == report.gaps.excess
    assert report.estimates["risk"] == report.samples.risk
    assert report.estimates["taught"] == report.heldout.taught


def test_a_missed_report_holds_nothing():
    missed = Report.missed(3, 120, "x" * 600)
    assert (missed.samples, missed.gaps, len(missed.problem), missed.estimates) == (Samples(), Gaps(), 500, {})


@pytest.mark.parametrize("changes", [{"unknown": 1}, {"risk": 3}, {"transition": "soon"}])
def test_a_key_that_is_unknown_or_does_not_fit_is_refused_by_name(changes):
    flat = history_of("demo")[0] | changes
    with pytest.raises(ValueError, match=next(iter(changes))):
        Report.from_json(json.dumps(flat))
