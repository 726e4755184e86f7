"""Expected values are the files each test writes; the independent check is what `datasets` reads from them."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from basinguard.core import images
from basinguard.core.text import printable
from basinguard.curation import caption_files as captionfiles
from basinguard.curation.folder import Folder, read_folder


def save(path: Path, *, seed: int = 0, size: int = 32, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_jsonl(path: Path, rows: list) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def codes(folder: Folder) -> list[str]:
    return [problem.code for problem in folder.problems]


def captions(folder: Folder) -> dict[str, tuple[str, ...]]:
    return {item.file_name: item.captions for item in folder.items}


def write_metadata(directory: Path, kind: str, rows: list[dict]) -> None:
    if kind == "jsonl":
        write_jsonl(directory / "metadata.jsonl", rows)
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), directory / "metadata.parquet")
    else:
        import csv

        with (directory / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_reads_the_same_rows_as_datasets(tmp_path, kind, column):
    names = ["a.png", "sub/b b.jpg", "sub/c'\"<b>.png"]
    for seed, name in enumerate(names):
        save(tmp_path / name, seed=seed)
    rows = [{"file_name": name, column: f'caption, "{name}"'} for name in names]
    write_metadata(tmp_path, kind, rows)
    folder = read_folder(tmp_path)
    assert folder.problems == ()
    assert captions(folder) == {row["file_name"]: (row[column],) for row in rows}
    if kind == "jsonl" and column == "text":
        from datasets import load_dataset

        loaded = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / ".cache"))
        assert sorted(loaded["text"]) == sorted(item.caption for item in folder.items)


def test_text_files_fill_in_and_their_lines_are_one_caption_unless_asked(tmp_path):
    save(tmp_path / "a.png"), save(tmp_path / "b.png"), save(tmp_path / "c.png")
    (tmp_path / "a.txt").write_text("﻿a cat \n\n a small  cat\na cat\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("not used, the table speaks first")
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "b.png", "text": ["one", "two"]}])
    folder = read_folder(tmp_path)
    assert captions(folder) == {"a.png": ("a cat a small cat a cat",), "b.png": ("one", "two"), "c.png": ()}
    assert captions(read_folder(tmp_path, lines=True))["a.png"] == ("a cat", "a small cat")
    assert [(p.code, p.file, p.skipped) for p in folder.problems] == [("caption-missing", "c.png", False)]


def test_facts_are_upright_and_name_oddities(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (8, 8)).save(tmp_path / "alpha.png")
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    frames = [Image.new("L", (8, 8), value) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    facts = {item.file_name: item.facts for item in read_folder(tmp_path).items}
    assert (facts["turned.jpg"].width, facts["turned.jpg"].height, facts["turned.jpg"].rotated) == (20, 40, True)
    assert facts["alpha.png"].alpha
    assert facts["cmyk.jpg"].mode == "CMYK"
    assert facts["moving.gif"].animated
    assert not any((facts["cmyk.jpg"].alpha, facts["cmyk.jpg"].animated, facts["cmyk.jpg"].rotated))


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_files_are_skipped(tmp_path, suffix):
    whole = save(tmp_path / f"whole{suffix}", size=96)
    (tmp_path / f"cut{suffix}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    folder = read_folder(tmp_path)
    assert [item.file_name for item in folder.items] == [f"whole{suffix}"]
    problem = next(p for p in folder.problems if p.file.startswith("cut"))
    assert problem.skipped
    assert problem.code in ({"truncated", "unreadable"} if suffix == ".webp" else {"truncated"})


def test_damaged_files_have_one_line_each(tmp_path):
    save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "zip.png").write_bytes(b"PK\x03\x04" + bytes(1000))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    os.symlink("nowhere.png", tmp_path / "dangling.png")
    folder = read_folder(tmp_path)
    skipped = {p.file: p.code for p in folder.problems if p.skipped}
    assert skipped == {
        "bomb.png": "bomb",
        "dangling.png": "unreadable",
        "empty.png": "empty",
        "loop.png": "unreadable",
        "pipe.png": "not-a-file",
        "zip.png": "unreadable",
    }
    assert all("\n" not in str(problem) for problem in folder.problems)
    assert [item.file_name for item in folder.items] == ["good.png"]


def test_links_to_folders_cannot_loop_or_escape(tmp_path):
    outside = tmp_path / "outside"
    save(outside / "secret.png")
    inside = tmp_path / "inside"
    save(inside / "a.png")
    os.symlink(inside, inside / "again")
    os.symlink(outside, inside / "elsewhere")
    folder = read_folder(inside)
    assert [item.file_name for item in folder.items] == ["a.png"]
    assert [p.file for p in folder.problems if p.code == "link-to-folder"] == ["again", "elsewhere"]


def test_a_link_to_a_file_is_read(tmp_path):
    """Snapshots of the Hub are links to blobs elsewhere."""
    save(tmp_path / "blobs" / "b.png")
    (tmp_path / "snapshot").mkdir()
    os.symlink(tmp_path / "blobs" / "b.png", tmp_path / "snapshot" / "a.png")
    assert [item.file_name for item in read_folder(tmp_path / "snapshot").items] == ["a.png"]


def test_bad_rows_cost_one_line_each(tmp_path):
    save(tmp_path / "a.png")
    rows = [
        {"file_name": "a.png", "text": "kept"},
        {"file_name": "a.png", "text": "second row"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../a.png", "text": "x"},
        {"file_name": "/etc/a.png", "text": "x"},
        {"file_name": "C:\\a.png", "text": "x"},
        {"file_name": "http://a/b.png", "text": "x"},
        {"text": "no name"},
        {"file_name": "a.png", "text": 3},
        "not json",
        "[1]",
        "[" * 100_000,
    ]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    folder = read_folder(tmp_path)
    assert captions(folder) == {"a.png": ("kept", "second row")}
    codes = {p.file: p.code for p in folder.problems}
    assert codes == {
        "a.png": "rows-for-one-image",
        "metadata.jsonl, row 3": "row-missing-file",
        **{f"metadata.jsonl, row {n}": "row-escapes" for n in (4, 5, 6, 7)},
        **{f"metadata.jsonl, row {n}": "row-unusable" for n in (8, 9, 10, 11, 12)},
    }


def test_undecodable_and_overlong_rows(tmp_path):
    save(tmp_path / "a.png")
    good = json.dumps({"file_name": "a.png", "text": "kept"}).encode()
    huge = b'{"file_name": "a.png", "text": "' + b"x" * (3 * captionfiles.MAX_ROW_BYTES) + b'"}'
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join([b'{"file_name": "\xff.png"}', huge, good]))
    folder = read_folder(tmp_path)
    assert captions(folder) == {"a.png": ("kept",)}
    assert [p.file for p in folder.problems] == ["metadata.jsonl, row 1", "metadata.jsonl, row 2"]


def test_a_caption_file_of_100_mb_is_one_line(tmp_path):
    save(tmp_path / "a.png")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(100 * 2**20)
    folder = read_folder(tmp_path)
    assert codes(folder) == ["caption-missing", "caption-unreadable"]
    assert "104,857,600 bytes" in folder.problems[1].message


def test_one_metadata_file_for_a_folder(tmp_path):
    save(tmp_path / "a.png")
    write_metadata(tmp_path, "jsonl", [{"file_name": "a.png", "text": "jsonl"}])
    write_metadata(tmp_path, "csv", [{"file_name": "a.png", "text": "csv"}])
    folder = read_folder(tmp_path)
    assert captions(folder) == {"a.png": ("jsonl",)}
    assert codes(folder) == ["metadata-ambiguous"]


def test_a_damaged_table_is_one_line_and_a_table_without_names_too(tmp_path):
    save(tmp_path / "a" / "a.png"), save(tmp_path / "b" / "b.png")
    (tmp_path / "a" / "metadata.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "b" / "metadata.csv").write_text("name,text\nb.png,x\nb.png,y\n")
    folder = read_folder(tmp_path)
    about = [(p.file, p.code) for p in folder.problems if p.code != "caption-missing"]
    assert about == [("a/metadata.parquet", "metadata-unreadable"), ("b/metadata.csv, row 2", "row-unusable")]


def test_awkward_names(tmp_path):
    names = ["two\nlines.png", "<script>alert(1)</script>.png".replace("/", "_"), "q'\".png", " lead.png", "ü.png"]
    for name in names:
        save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("caption")
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    Image.new("RGB", (8, 8)).save(raw.decode("utf-8", "surrogateescape"))
    folder = read_folder(tmp_path)
    assert sorted(item.file_name for item in folder.items) == sorted(names)
    assert {p.code: p.file for p in folder.problems} == {
        "name-control-character": r"two\nlines.png",
        "name-not-utf8": r"\udcff.png",
    }
    "".join(map(str, folder.problems)).encode("utf-8")


def test_orphan_captions_and_unreadable_ones(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_text("no image")
    assert codes(read_folder(tmp_path)) == ["caption-missing", "caption-unreadable", "caption-orphan"]


def test_refuses_what_is_not_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        read_folder(save(tmp_path / "a.png"))


def test_an_empty_folder_has_nothing_to_say(tmp_path):
    assert read_folder(tmp_path) == Folder(tmp_path, (), ())


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "\udcff", "tab\t"])
def test_printable_is_one_line_of_utf8(name):
    shown = printable(name)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_a_caption_file_that_is_empty_or_unreadable_is_not_said_to_be_missing(tmp_path):
    for name in ("empty", "latin", "none"):
        save(tmp_path / f"{name}.png")
    (tmp_path / "empty.txt").write_bytes("\ufeff \n".encode())
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    said = {p.file: p.message for p in read_folder(tmp_path).problems if p.code == "caption-missing"}
    there = "no caption: its row or text file is empty or unreadable"
    absent = "no caption: neither a row in a metadata file nor a .txt of the same name"
    assert said == {"empty.png": there, "latin.png": there, "none.png": absent}
