"""What a curation leaves on disk: curation.json, a manifest for `datasets`, and the configs of two trainers.

Everything is written to a temporary file first and then renamed, so a full disk or Ctrl-C leaves the old file or none.
The manifest is the only thing that may be written beside the images, because `load_dataset` reads it from there only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..core.schema import Schema
from .decisions import Decision
from .folder import Problem
from .run_remedies import Remedy

MANIFEST = "metadata.curated.jsonl"


class Settings(Schema):
    """What a curation was made with; the same folder and settings give the same curation.json, byte for byte."""

    embedder: str
    views: str = ""
    thresholds: dict[str, float]
    repeats: int
    basinguard: str


class GroupRecord(Schema):
    """Copies of one picture: their files, the representative first, and why it is proposed to stay."""

    files: tuple[str, ...]
    reason: str


class AlikeRecord(Schema):
    """Different pictures that look alike, for a person to look at; nothing is proposed about them.

    Attributes:
        files: their names, in order.
        closest: the two that are most alike.
        similarity: of those two, to their thumbnails.
        reason: how those two differ, in words.
    """

    files: tuple[str, ...]
    closest: tuple[str, ...] = ()
    similarity: float
    reason: str


class LeakRecord(Schema):
    """A training image whose picture is also in the held-out set."""

    file_name: str
    heldout: str
    similarity: float


class Curation(Schema):
    """A whole curation, as in curation.json; no absolute paths and no dates, so that two runs compare.

    `run` says where evidence of a training run was read, and `remedies` what it calls for, most memorized first.
    """

    schema_version: Literal[1] = 1
    settings: Settings
    decisions: tuple[Decision, ...]
    groups: tuple[GroupRecord, ...]
    alike: tuple[AlikeRecord, ...] = ()
    leaks: tuple[LeakRecord, ...]
    run: str = ""
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def manifest_lines(decisions: Iterable[Decision]) -> bytes:
    """Rows for `load_dataset("imagefolder", metadata_filenames=["metadata.curated.jsonl"])`, one for each kept image.

    Columns: file_name, text (the first caption), captions (all of them), repeats.
    """
    rows = (
        {
            "file_name": decision.file_name,
            "text": decision.captions[0] if decision.captions else "",
            "captions": list(decision.captions) or [""],
            "repeats": decision.repeats,
        }
        for decision in decisions
        if decision.action != "drop"
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


class ManifestRow(Schema):
    """One line of a manifest: an image that is kept, the captions it is trained with, and how often an epoch shows it.

    `text` is the first caption again, for readers that take one only.
    """

    file_name: str
    text: str
    captions: Annotated[tuple[str, ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1)]


def read_manifest(path: Path) -> list[ManifestRow]:
    """Rows of a manifest that `manifest_lines` made.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none of a manifest; names it and the key.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(ManifestRow.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; write it with `basinguard curate --apply`") from None
    return rows
