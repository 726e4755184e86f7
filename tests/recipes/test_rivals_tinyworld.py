"""The scenarios' folders: what is repeated is protected, what is shared is a prompt."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "studies" / "rivals_tinyworld.py"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE))


def captions(folder):
    return [json.loads(line)["text"] for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_few_scenes_are_repeated_among_many_and_only_those_are_protected(recipe, tmp_path):
    scenario = recipe["s3"](tmp_path, planted=2, copies=3, others=4)
    counts = Counter(captions(scenario.train))
    assert sorted(counts.values()) == [1, 1, 1, 1, 3, 3]
    assert {text for text, count in counts.items() if count == 3} == set(captions(scenario.protected))
    same = [path.read_bytes() for path in sorted(scenario.train.glob("copy * of planted 0.png"))]
    assert len(same) == 3
    assert set(same) == {(scenario.protected / "planted 0.png").read_bytes()}


@pytest.mark.parametrize("name", ["s1", "s2"])
def test_quality_is_measured_against_fresh_scenes_of_the_same_prompts(recipe, name, tmp_path):
    scenario = recipe[name](tmp_path)
    counts = Counter(captions(scenario.heldout))
    assert set(counts) == set(captions(scenario.train))
    assert set(counts.values()) == {4}
    trained = {path.read_bytes() for path in scenario.train.glob("*.png")}
    assert trained.isdisjoint(path.read_bytes() for path in scenario.heldout.glob("*.png"))


def test_class_prompts_are_shared_by_different_scenes(recipe, tmp_path):
    scenario = recipe["s2"](tmp_path)
    assert set(Counter(captions(scenario.train)).values()) == {4}
    assert len({path.read_bytes() for path in scenario.train.glob("*.png")}) == 32
    assert scenario.protected == scenario.train


def test_art_says_what_it_needs(recipe, tmp_path):
    with pytest.raises(SystemExit, match="npm pack openmoji"):
        recipe["art"](tmp_path, None)
