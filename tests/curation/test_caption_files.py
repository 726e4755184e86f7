"""Captions as people write them; every expected value is what the test wrote, or csv's own reading of it."""

import csv
import io
import json
import unicodedata

import pytest
from PIL import Image

from basinguard.curation.caption_files import CaptionRow, Complaint, read_caption_text, read_metadata
from basinguard.curation.folder import read_folder


def table(tmp_path, text):
    path = tmp_path / "metadata.csv"
    path.write_text(text, encoding="utf-8", newline="")
    rows = list(read_metadata(path))
    return {row.file_name: row.captions for row in rows if isinstance(row, CaptionRow)}, [
        (row.number, row.code) for row in rows if isinstance(row, Complaint)
    ]


def images(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(directory / name)


def problems(directory):
    return {(problem.code, problem.file): problem.message for problem in read_folder(directory).problems}


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("a café".encode("utf-16"), "UTF-16 given"),
        ("a café".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"a\x00 boat", "NUL"),
        ("a café".encode("cp1252"), "not UTF-8 at byte 5"),
    ],
)
def test_what_is_not_utf8_is_refused_by_name(tmp_path, raw, why):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=why):
        read_caption_text(tmp_path / "a.txt")


def test_quoted_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    rows = [["file_name", "text"], ["a.png", 'says "STOP", twice'], ["b.png", "one\ntwo"], ["c.png", "plain"]]
    written = io.StringIO(newline="")
    csv.writer(written).writerows(rows)
    captions, complaints = table(tmp_path, written.getvalue())
    assert captions == {"a.png": ('says "STOP", twice',), "b.png": ("one two",), "c.png": ("plain",)}
    assert complaints == []


@pytest.mark.parametrize("bad", ['b.png,"says "STOP" twice"', 'b.png,"never closed'])
def test_a_stray_quote_costs_the_row_that_it_is_in(tmp_path, bad):
    captions, complaints = table(tmp_path, f"file_name,text\na.png,x\n{bad}\nc.png,y\nd.png,z\n")
    assert captions == {"a.png": ("x",), "c.png": ("y",), "d.png": ("z",)}
    assert complaints == [(3, "row-unusable")]


def test_a_caption_with_unquoted_commas_is_not_cut_in_silence(tmp_path):
    captions, complaints = table(tmp_path, "file_name,text\na.png,a boat, in the rain\nb.png,a boat\n")
    assert captions == {"b.png": ("a boat",)}
    assert complaints == [(2, "row-unusable")]


def test_an_empty_column_gives_way_to_a_filled_one(tmp_path):
    captions, complaints = table(tmp_path, "file_name,text,caption\na.png,,a boat\nb.png,a cat,unused\n")
    assert captions == {"a.png": ("a boat",), "b.png": ("a cat",)}
    assert complaints == []


def test_columns_of_other_names_are_listed(tmp_path):
    (tmp_path / "metadata.csv").write_text("image,caption\na.png,x\n")
    (only,) = read_metadata(tmp_path / "metadata.csv")
    assert "columns found: image, caption" in only.message
    (tmp_path / "metadata.csv").write_text("file_name,description\na.png,x\n")
    complaint, row = read_metadata(tmp_path / "metadata.csv")
    assert "columns found: file_name, description" in complaint.message
    assert row.captions == ()


def test_names_match_however_their_accents_are_written(tmp_path):
    name = "Füße.png"
    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    images(tmp_path, f"a/{apart}", f"b/{composed}", f"c/{apart}")
    for folder, given in (("a", composed), ("b", apart)):
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps({"file_name": given, "text": "feet"}) + "\n")
    (tmp_path / "c" / composed).with_suffix(".txt").write_text("feet")
    folder = read_folder(tmp_path)
    assert [item.caption for item in folder.items] == ["feet"] * 3
    assert folder.problems == ()


def test_windows_separators_and_tables_of_other_names(tmp_path):
    images(tmp_path, "sub/a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "sub\\a.png", "text": "x"}) + "\n")
    (tmp_path / "captions.csv").write_text("file_name,text\n")
    folder = read_folder(tmp_path)
    assert [item.caption for item in folder.items] == ["x"]
    assert [(p.code, p.file) for p in folder.problems] == [("metadata-name", "captions.csv")]


def test_a_second_text_file_is_said(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.caption").write_text("two")
    assert [item.caption for item in read_folder(tmp_path).items] == ["one"]
    assert list(problems(tmp_path)) == [("caption-ambiguous", "a.caption")]


def test_types_that_are_not_read_are_counted_with_what_helps(tmp_path):
    images(tmp_path, "a.png")
    for name in ("b.svg", "c.svg", "d.mp4"):
        (tmp_path / name).write_bytes(b"?")
    messages = {code: message for (code, file), message in problems(tmp_path).items() if file.startswith("b.svg")}
    assert messages == {"type-not-read": "2 of type .svg, which is not read; save it as PNG, JPEG or WebP"}
    skipped = {p.file: p.skipped for p in read_folder(tmp_path).problems if p.code == "type-not-read"}
    assert skipped == {"b.svg and 1 more": True, "d.mp4": False}
