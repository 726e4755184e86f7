"""The page of other model families says what was measured."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "recipes" / "results" / "basin_families.json").read_text())
PAGE = " ".join((ROOT / "docs" / "families.md").read_text().split())


def said(estimate, digits):
    value, low, high = (f"{estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def position(model, transition):
    return next(i for i, timestep in enumerate(model["timesteps"]) if round(timestep) == transition)


@pytest.mark.parametrize("name", ["tinyworld-xl", "tinyworld-flow"])
def test_exits_and_the_dynamic_rule_are_as_measured(name):
    model = MEASURED[name]
    never = model["detectors"]["local minimum"]["never"]
    share = {key: 100 * never[key] for key in ("value", "low", "high")}
    assert said(model["exit"]["median timestep"], 0) in PAGE
    assert said(share, 0).replace(" [", " % [") in PAGE
    early = {key: 100 * model["detectors"]["local minimum"]["early"][key] for key in ("value", "low", "high")}
    assert said(early, 0).replace(" [", " % [") in PAGE
    assert said(model["detectors"]["local minimum"]["distance"], 0) in PAGE
    assert model["exit"]["memorized"] == model["exit"]["pairs"] == 24


@pytest.mark.parametrize(
    ("name", "kind", "transition"),
    [
        ("tinyworld-xl", "no guidance", 374),
        ("tinyworld-xl", "opposite", 687),
        ("tinyworld-xl", "base-led", 499),
        ("tinyworld-flow", "no guidance", 267),
        ("tinyworld-flow", "opposite", 600),
        ("tinyworld-flow", "base-led", 401),
    ],
)
def test_the_transition_is_the_highest_with_two_copies_at_most_and_keeps_what_the_page_says(name, kind, transition):
    model = MEASURED[name]
    copies, at = [row["value"] for row in model["kinds"][kind]["copies"]], position(model, transition)
    assert max(copies[at:]) <= 2.5 / 24 < max(copies[at - 1 :])
    assert str(transition) in PAGE
    assert said(model["kinds"][kind]["clip"][at], 2) in PAGE


@pytest.mark.parametrize("name", ["demo_xl", "demo_flow"])
def test_the_demos_end_as_the_page_says(name):
    demo = json.loads((ROOT / "recipes" / "results" / f"{name}.json").read_text())
    probes = {report["epoch"]: report for report in demo["history"]}
    assert demo["product"] == "epoch 20, the whole fine-tune, plain CFG of scale 3"
    numbers = (demo["guarded"]["risk"], demo["guarded, held-out"]["risk"], demo["taught"], probes[199]["risk"])
    for estimate in (*numbers, probes[199]["taught"]):
        assert said(estimate, 2) in PAGE
    assert demo["guarded"]["risk"]["high"] <= 0.1, "the promise does not hold on fresh seeds"
