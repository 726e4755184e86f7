"""Captions from files: metadata.jsonl, metadata.csv, metadata.parquet, or a text file beside each image.

Every reader is a generator of rows and complaints, so a file of any size passes through in constant memory and one
bad row costs one line, not the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.text import one_line

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the order in which one is chosen
CAPTION_COLUMNS = ("text", "caption", "prompt")
CAPTION_SUFFIXES = (".txt", ".caption")
MAX_ROW_BYTES = 2**20
MOST_LINES = 50  # of one record of a table
OPEN = "unexpected end of data"  # what csv says of a quote that is still open
MAX_CAPTION_BYTES = 2**16  # no text encoder reads a thousandth of it; a larger one is some other file


@dataclass(frozen=True)
class CaptionRow:
    """One usable row: the image it names, relative to the metadata file, and its captions, if it has any."""

    number: int
    file_name: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Complaint:
    """One line of the problem list about a caption file; `number` is the row's, 0 for the whole file."""

    number: int
    code: str
    message: str


def read_metadata(path: Path) -> Iterator[CaptionRow | Complaint]:
    """Rows of a metadata file, in order, with a complaint for each that cannot be used. Never raises for its content.

    A caption cell may hold a text or a list of texts; several texts are variants of one caption.
    """
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix]
    try:
        captioned = False
        for number, row in reader(path):
            if not captioned and isinstance(row, dict) and "file_name" in row:
                captioned = True
                if not any(column in row for column in CAPTION_COLUMNS):
                    columns = ", ".join(str(key) for key in row)[:200]
                    wanted = f"no column {', '.join(CAPTION_COLUMNS)} (columns found: {columns})"
                    yield Complaint(number, "caption-column-missing", f"{wanted}; rename the one that holds captions")
            yield row if isinstance(row, Complaint) else _checked(number, row)
            if isinstance(row, dict) and "file_name" not in row and path.suffix != ".jsonl":
                return  # a table has the same columns in every row: one complaint is enough
    except (OSError, csv.Error, ValueError) as error:
        message = f"cannot be read further ({type(error).__name__}: {one_line(str(error), 200)})"
        yield Complaint(0, "metadata-unreadable", message)


def read_caption_text(path: Path, *, lines: bool = False) -> tuple[str, ...]:
    """The caption in a text file beside an image: wrapped lines and paragraphs are joined.

    Args:
        path: the file.
        lines: each line that is not empty is a caption of its own, a variant.

    Raises:
        ValueError: not UTF-8, NUL characters, or larger than `MAX_CAPTION_BYTES`.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_CAPTION_BYTES + 1)
    if len(raw) > MAX_CAPTION_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes given, at most {MAX_CAPTION_BYTES:,} accepted for a caption")
    text = _decoded(raw)
    return _texts(text.splitlines() if lines else [text])


def _decoded(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("UTF-16 given, UTF-8 accepted; save it as UTF-8")
    if b"\0" in raw:
        what = "UTF-16 without a byte order mark" if _every_other(raw) else "damaged, or no text"
        raise ValueError(f"a NUL character at byte {raw.index(0)}, so it is {what}; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _every_other(raw: bytes) -> bool:
    return min(raw[0::2].count(0), raw[1::2].count(0)) == 0 and raw.count(0) > len(raw) // 4


def _checked(number: int, row: Mapping[str, Any]) -> CaptionRow | Complaint:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        columns = ", ".join(str(key) for key in row)[:200]
        problem = (
            f"file_name is {name!r:.80}"
            if "file_name" in row
            else f"no column file_name (columns found: {columns or 'none'})"
        )
        return Complaint(number, "row-unusable", f"{problem}; expected the image's path relative to this file")
    column = next((c for c in CAPTION_COLUMNS if row.get(c)), None)
    value = row.get(column) if column else ()
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        return Complaint(number, "row-unusable", f"{column} is {value!r:.80}; expected a text or a list of texts")
    if any("\0" in text for text in texts):
        return Complaint(number, "row-unusable", f"{column} holds a NUL character; correct the row")
    if sum(len(text) for text in texts) > MAX_CAPTION_BYTES:
        size = sum(len(text) for text in texts)
        return Complaint(
            number, "caption-too-long", f"{size:,} characters given, at most {MAX_CAPTION_BYTES:,} accepted"
        )
    return CaptionRow(number, name, _texts(texts))


def _texts(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in (" ".join(raw.split()) for raw in texts) if text))


Numbered = Iterator[tuple[int, dict[str, Any] | Complaint]]


def _lines(path: Path) -> Iterator[tuple[int, str | Complaint]]:
    """Decoded lines with their numbers; one that is too long is skipped without being held in memory."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(raw) > MAX_ROW_BYTES:
                while not raw.endswith(b"\n") and (raw := file.readline(MAX_ROW_BYTES)):
                    pass
                yield number, Complaint(number, "row-unusable", f"longer than {MAX_ROW_BYTES:,} bytes; skipped")
                continue
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, Complaint(number, "row-unusable", f"not UTF-8 at byte {error.start} of the line")


def _jsonl(path: Path) -> Numbered:
    for number, line in _lines(path):
        if isinstance(line, Complaint):
            yield number, line
        elif line.strip():
            yield number, _json_row(number, line)


def _json_row(number: int, line: str) -> dict[str, Any] | Complaint:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Complaint(number, "row-unusable", f"not JSON ({str(error)[:100]}); expected one object a line")
    if not isinstance(row, dict):
        return Complaint(number, "row-unusable", f"{type(row).__name__} given, expected an object with file_name")
    return row


def _csv(path: Path) -> Numbered:
    """Rows of a table, each parsed on its own, so that a stray quote costs the row that it is in."""
    header: list[str] | None = None
    for number, record in _records(path):
        if isinstance(record, Complaint):
            yield number, record
        elif header is None:
            header = record
        elif len(record) > len(header):
            message = f"{len(record)} fields under {len(header)} columns: put quotes around a caption with commas"
            yield number, Complaint(number, "row-unusable", message)
        elif record:
            yield number, dict(zip(header, record, strict=False))


def _records(path: Path) -> Iterator[tuple[int, list[str] | Complaint]]:
    """Fields of each record of a CSV file with the number of its last line; quoted fields may hold line breaks."""
    waiting: list[tuple[int, str]] = []
    lines = _lines(path)
    while True:
        if not waiting:
            number, line = next(lines, (0, None))
            if line is None:
                return
            if isinstance(line, Complaint):
                yield number, line
                continue
            waiting.append((number, line))
        fields, error = _parsed([line for _, line in waiting])
        if fields is not None:
            yield waiting[-1][0], fields
            waiting = []
            continue
        number, line = next(lines, (0, None)) if error == OPEN and len(waiting) < MOST_LINES else (0, None)
        if isinstance(line, str):
            waiting.append((number, line))
            continue
        first, _ = waiting.pop(0)
        message = f"a quote that does not close, or inside a field ({error}); write it twice"
        yield first, Complaint(first, "row-unusable", message)
        for later in range(len(waiting)):  # what was taken for its continuation are rows of their own
            fields, error = _parsed([waiting[later][1]])
            row = waiting[later][0]
            yield row, fields if fields is not None else Complaint(row, "row-unusable", f"not CSV ({error})")
        waiting = []


def _parsed(lines: list[str]) -> tuple[list[str] | None, str]:
    """The fields of one record, or why there are none."""
    try:
        return next(csv.reader(lines, strict=True), []), ""
    except csv.Error as error:
        return None, str(error)


def _parquet(path: Path) -> Numbered:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as table:
        names = set(table.schema_arrow.names)
        columns = [c for c in ("file_name", *CAPTION_COLUMNS) if c in names]
        number = 0
        for batch in table.iter_batches(batch_size=4096, columns=columns):
            for row in batch.to_pylist() if columns else [{}]:
                number += 1
                yield number, row
