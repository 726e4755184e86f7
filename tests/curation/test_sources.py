"""Several folders as one set: copies across them, names that tell them apart, a manifest in each."""

import doctest
import json

import pytest

from basinguard.cli import parse
from basinguard.curation import sources
from basinguard.curation.curate import curate_images
from basinguard.curation.manifest import MANIFEST


@pytest.fixture
def two_folders(folder_of, pictures, tmp_path):
    one = folder_of({"a.png": (pictures[0], "zxq one"), "b.png": (pictures[1], "zxq two")}, tmp_path / "one")
    two = folder_of(
        {"a.png": (pictures[2], "zxq three"), "c.png": (pictures[0].resize((96, 96)), "")}, tmp_path / "two"
    )
    return [one, two]


def test_examples():
    assert doctest.testmod(sources).failed == 0


def test_a_copy_in_another_folder_is_found_and_each_folder_gets_its_own_manifest(two_folders):
    outcome = curate_images(two_folders, apply=True, workers=1)
    assert [d.file_name for d in outcome.curation.decisions if d.action == "drop"] == ["two/c.png"]
    rows = [
        [json.loads(line)["file_name"] for line in (folder / MANIFEST).read_text().splitlines()]
        for folder in two_folders
    ]
    assert rows == [["a.png", "b.png"], ["a.png"]]
    out = two_folders[0].parent / "one-curation"
    assert f"{two_folders[0]} {two_folders[1]} --allow-list" in (out / "report.html").read_text()
    assert {path.name for path in (out / "basinguard-images/1_images").glob("*.png")} == {
        "one-a.png", "one-b.png", "two-a.png"}  # fmt: skip


def test_a_folder_twice_inside_another_or_missing_is_refused(two_folders, tmp_path):
    with pytest.raises(ValueError, match=r"lies in .*; give one of them"):
        curate_images([two_folders[0], two_folders[0]])
    with pytest.raises(ValueError, match=r"one lies in .*; give one of them"):
        curate_images([tmp_path, two_folders[0]])
    with pytest.raises(ValueError, match="no folder given"):
        curate_images([])
    with pytest.raises(FileNotFoundError, match="three: no such folder"):
        curate_images([two_folders[0], tmp_path / "three"])


def test_the_command_line_takes_several_before_its_options():
    assert parse("curate", ["one", "two", "--apply"])["source"] == ["one", "two"]
    assert str(parse("curate", ["one", "--apply"])["source"]) == "one"
