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
MAX_CAPTION_BYTES = 2**16  # no text encoder reads a thousandth of it; a larger one is some other file


@dataclass(frozen=True)
class Row:
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


def read_metadata(path: Path) -> Iterator[Row | Complaint]:
    """Rows of a metadata file, in order, with a complaint for each that cannot be used. Never raises for its content.

    A caption cell may hold a text or a list of texts; several texts are variants of one caption.
    """
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix]
    try:
        for number, row in reader(path):
            yield row if isinstance(row, Complaint) else _checked(number, row)
            if isinstance(row, dict) and "file_name" not in row and path.suffix != ".jsonl":
                return  # a table has the same columns in every row: one complaint is enough
    except (OSError, csv.Error, ValueError) as error:
        message = f"cannot be read further ({type(error).__name__}: {one_line(str(error), 200)})"
        yield Complaint(0, "metadata-unreadable", message)


def read_caption_text(path: Path) -> tuple[str, ...]:
    """Captions of a text file beside an image; each line that is not empty is a variant.

    Raises:
        ValueError: not UTF-8, or larger than `MAX_CAPTION_BYTES`.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_CAPTION_BYTES + 1)
    if len(raw) > MAX_CAPTION_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes given, at most {MAX_CAPTION_BYTES:,} accepted for a caption")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return _texts(text.splitlines())


def _checked(number: int, row: Mapping[str, Any]) -> Row | Complaint:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        problem = "no column file_name" if "file_name" not in row else f"file_name is {name!r:.80}"
        return Complaint(number, "row-unusable", f"{problem}; expected the image's path relative to this file")
    column = next((c for c in CAPTION_COLUMNS if row.get(c) is not None), None)
    value = row.get(column) if column else ()
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        return Complaint(number, "row-unusable", f"{column} is {value!r:.80}; expected a text or a list of texts")
    if sum(len(text) for text in texts) > MAX_CAPTION_BYTES:
        size = sum(len(text) for text in texts)
        return Complaint(
            number, "caption-too-long", f"{size:,} characters given, at most {MAX_CAPTION_BYTES:,} accepted"
        )
    return Row(number, name, _texts(texts))


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
    complaints: list[Complaint] = []

    def text_lines() -> Iterator[str]:
        for _, line in _lines(path):
            if isinstance(line, Complaint):
                complaints.append(line)
            else:
                yield line

    reader = csv.DictReader(text_lines(), strict=True)
    for row in reader:
        while complaints:
            yield complaints[0].number, complaints.pop(0)
        yield reader.line_num, {key: value for key, value in row.items() if key is not None}
    for complaint in complaints:
        yield complaint.number, complaint


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
