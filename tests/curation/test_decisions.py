"""Decisions follow from groups and findings that each test writes down."""

from pathlib import Path

import numpy as np
import pytest

from basinguard.core.images import Facts
from basinguard.core.stats import wilson
from basinguard.curation.decisions import AllowList, propose_decisions, read_allow_list, to_allow_list
from basinguard.curation.findings import Finding
from basinguard.curation.folder import Item
from basinguard.curation.groups import Group
from basinguard.curation.run_remedies import propose_from_run
from basinguard.curation.scan import Scan


def scan_of(*captions) -> Scan:
    items = tuple(
        Item(
            Path(f"{n}.png"), f"{n}.png", texts[0] if texts else "", tuple(texts[1:]), Facts(512, 512, "RGB", "PNG", 9)
        )
        for n, texts in enumerate(captions)
    )
    shas = tuple(f"{n:064x}" for n in range(len(items)))
    return Scan(items, shas, np.zeros((len(items), 64, 64, 3), np.uint8), *np.ones((2, len(items)), np.float32), ())


RISKY = {0: [Finding(code="copies", message="4 copies", weight=0.7)]}


def test_copies_go_and_leave_their_captions():
    scan = scan_of(["a cat"], ["the cat"], ["a dog"])
    keep, drop, other = propose_decisions(scan, [Group((0, 1), "the most pixels")], {})
    assert (keep.action, keep.captions, keep.repeats) == ("merge-captions", ("a cat", "the cat"), 1)
    assert (drop.action, drop.repeats) == ("drop", 0)
    assert "0.png" in drop.reason
    assert (other.action, other.group) == ("keep", None)


def test_risky_images_are_shown_less_often_when_they_are_repeated():
    assert [d.repeats for d in propose_decisions(scan_of(["a"], ["b"]), [], RISKY, repeats=10)] == [5, 10]
    assert propose_decisions(scan_of(["a"]), [], RISKY, repeats=1)[0].action == "keep"


def test_a_refusal_is_respected_by_content():
    scan = scan_of(["a cat"], ["the cat"])
    groups = [Group((0, 1), "the most pixels")]
    refusals = to_allow_list(propose_decisions(scan, groups, {}), ["1.png", "0.png"])
    assert [d.action for d in propose_decisions(scan, groups, {}, allow=refusals)] == ["keep", "keep"]
    renamed = Scan(scan.items[::-1], scan.sha256[::-1], scan.thumbs, scan.aspects, scan.inside, ())
    again = propose_decisions(renamed, [Group((1, 0), "the most pixels")], {}, allow=refusals)
    assert [d.action for d in again] == ["keep", "keep"]


def test_an_over_specific_caption_gets_a_suggestion():
    scan = scan_of(["a cat in the garden, my aunt Gerda"], ["a cat in the garden"])
    noticed = {0: [Finding(code="caption-unique", message="3 of 8 words", weight=0.4)]}
    first, second = propose_decisions(scan, [], noticed)
    assert (first.action, first.suggestion) == ("recaption", "a cat in the garden")
    assert second.action == "keep"


def test_an_allow_list_goes_to_disk_and_back(tmp_path):
    decisions = propose_decisions(scan_of(["a"], ["b"]), [Group((0, 1), "x")], {})
    listed = to_allow_list(decisions, ["1.png"])
    (tmp_path / "allow.json").write_text(listed.to_json())
    assert read_allow_list(tmp_path / "allow.json") == listed
    with pytest.raises(ValueError, match="no such image"):
        to_allow_list(decisions, ["9.png"])


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema_version": 2}', '{"allowed": [{"sha256": "x", "action": "drop"}]}']
)
def test_a_foreign_allow_list_is_refused(tmp_path, text):
    (tmp_path / "allow.json").write_text(text)
    with pytest.raises(ValueError, match="not an allow-list"):
        read_allow_list(tmp_path / "allow.json")


def test_an_empty_allow_list_allows_nothing():
    assert propose_decisions(scan_of(["a"]), [], {}, allow=AllowList())[0].allowed == ()


def test_repeats_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        propose_decisions(scan_of(["a"]), [], {}, repeats=0)


@pytest.mark.parametrize(
    ("hits", "n", "repeats", "captions", "verdict", "action"),
    [
        (8, 8, 10, 1, "memorized", "drop"),
        (4, 8, 10, 1, "memorized", "fewer-repeats"),
        (4, 8, 1, 1, "memorized", "more-captions"),
        (4, 8, 1, 3, "memorized", "drop"),
        (1, 8, 10, 1, "undecided", "keep"),
        (0, 8, 10, 1, "undecided", "keep"),
        (0, 100, 10, 1, "clear", "keep"),
    ],
)
def test_the_evidence_of_a_run_decides(hits, n, repeats, captions, verdict, action):
    (remedy,) = propose_from_run({"a": wilson(hits, n)}, repeats={"a": repeats}, captions={"a": captions})
    assert (remedy.verdict, remedy.action) == (verdict, action)
    assert f"(n = {n})" in remedy.reason


def test_the_most_memorized_comes_first():
    ranked = propose_from_run({"b": wilson(4, 8), "c": wilson(0, 8), "a": wilson(8, 8)})
    assert [remedy.file_name for remedy in ranked] == ["a", "b", "c"]


def test_thresholds_have_an_order():
    with pytest.raises(ValueError, match="alpha"):
        propose_from_run({}, alpha=0.6, hopeless=0.5)
