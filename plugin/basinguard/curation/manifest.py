"""What a curation leaves on disk: curation.json, a manifest for `datasets`, and the configs of two trainers.

Everything is written to a temporary file first and then renamed, so a full disk or Ctrl-C leaves the old file or none.
The manifest is the only thing that may be written beside the images, because `load_dataset` reads it from there only.
Its rows carry hashes of what they were made from, so that a folder that has changed since is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..core.files import file_sha256
from ..core.schema import Schema
from ..core.text import printable
from .decisions import Decision
from .folder import Folder, Item, Problem
from .run_remedies import Remedy

MANIFEST = "metadata.curated.jsonl"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Settings(Schema):
    """What a curation was made with; the same folder and settings give the same curation.json, byte for byte."""

    embedder: str
    views: str = ""
    thresholds: dict[str, float]
    repeats: int
    select: int | None = None
    basinguard: str


class GroupRecord(Schema):
    """Copies of one picture.

    Attributes:
        files: their names, the one that is proposed to stay first.
        reason: why it is.
        similarities: of each other one to it, by their thumbnails; None where these two were not compared so.
    """

    files: tuple[str, ...]
    reason: str
    similarities: tuple[float | None, ...] = ()


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

    `positions` are places of the images on a map, see `embedding_map`, in the order of decisions. `run` says where
    evidence of a training run was read, and `remedies` what it calls for, most memorized first.
    """

    schema_version: Literal[1] = 1
    settings: Settings
    decisions: tuple[Decision, ...]
    groups: tuple[GroupRecord, ...]
    alike: tuple[AlikeRecord, ...] = ()
    leaks: tuple[LeakRecord, ...]
    positions: tuple[tuple[float, float], ...] = ()
    run: str = ""
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def captions_sha256(captions: Sequence[str]) -> str:
    """One hash of an image's captions in their order: a manifest remembers by it what it was made from."""
    return hashlib.sha256(json.dumps(list(captions), ensure_ascii=False).encode()).hexdigest()


def manifest_lines(decisions: Iterable[Decision], items: Iterable[Item]) -> bytes:
    """Rows for `load_dataset("imagefolder", metadata_filenames=["metadata.curated.jsonl"])`, one for each kept image.

    Columns: those of `ManifestRow`.

    Args:
        decisions: what was decided about each image.
        items: the images as their folder has them.
    """
    decisions, own = list(decisions), {item.file_name: item.captions for item in items}
    rows = (
        {
            "file_name": decision.file_name,
            "text": decision.captions[0] if decision.captions else "",
            "captions": list(decision.captions) or [""],
            "repeats": decision.repeats,
            "image_sha256": decision.sha256,
            "caption_sha256": captions_sha256(own[decision.file_name]),
            "captions_from": [
                {"dropped": name, "caption_sha256": captions_sha256(own[name])}
                for name in _caption_sources(decision, decisions, own)
            ],
        }
        for decision in decisions
        if decision.action != "drop"
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _caption_sources(decision: Decision, decisions: Sequence[Decision], own: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the dropped copies whose captions an image took over, in order."""
    if decision.group is None:
        return []
    dropped = [each.file_name for each in decisions if each.group == decision.group and each.action == "drop"]
    return [name for name in dropped if own[name] and set(own[name]) <= set(decision.captions)]


class CaptionSource(Schema):
    """A dropped copy whose captions another image took over, and what they were, see `captions_sha256`.

    Its name is no `file_name`, which `datasets` takes for the path of an image to open, wherever it stands.
    """

    dropped: str
    caption_sha256: Sha256


class ManifestRow(Schema):
    """One line of a manifest: an image that is kept, the captions it is trained with, and how often an epoch shows it.

    Attributes:
        file_name: the image, relative to its folder.
        text: the first caption again, for readers that take one only.
        captions: all of them.
        repeats: how often an epoch shows it.
        image_sha256: of the image's file when the manifest was written.
        caption_sha256: of the captions that it had in its folder then, see `captions_sha256`.
        captions_from: dropped copies whose captions it took over; empty where a manifest does not say.
    """

    file_name: str
    text: str
    captions: Annotated[tuple[str, ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1)]
    image_sha256: Sha256
    caption_sha256: Sha256
    captions_from: tuple[CaptionSource, ...] = ()


def find_manifest(directory: Path, manifest: str | Path) -> Path:
    """Where a manifest of a folder lies: by its name in the folder, or anywhere by its path.

    Raises:
        FileNotFoundError: in neither place.
    """
    places = (Path(directory).expanduser() / manifest, Path(manifest).expanduser())
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{places[0]}: no such manifest; `basinguard curate {directory} --apply` writes one")


def read_manifest(path: Path) -> list[ManifestRow]:
    """Rows of a manifest that `manifest_lines` made.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is none of a manifest; names it and the key.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(ManifestRow.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; write it with `basinguard curate --apply`") from None
    return rows


def check_rows(rows: Sequence[ManifestRow], folder: Folder) -> list[str]:
    """For each row why it must not be trained on, or "": the folder is not what it was when the manifest was written.

    Args:
        rows: of a manifest.
        folder: its folder, every image decoded.
    """
    items = {item.file_name: item for item in folder.items}
    damage = {problem.file: problem for problem in folder.problems if problem.skipped}
    earlier_names: set[str] = set()
    reasons = []
    for row in rows:
        again = row.file_name in earlier_names
        reason = _why_not(row, items.get(row.file_name), damage.get(printable(row.file_name)), again)
        reasons.append(reason or _why_not_its_sources(row, items))
        earlier_names.add(row.file_name)
    return reasons


def changed_images(rows: Sequence[ManifestRow], directory: Path) -> list[str]:
    """Names of the images of a manifest that are gone, or not what they were when it was written."""
    files = [(row, directory / row.file_name) for row in rows]
    changed = [row for row, path in files if not path.is_file() or file_sha256(path) != row.image_sha256]
    return [printable(row.file_name) for row in changed]


def _why_not(row: ManifestRow, item: Item | None, damage: Problem | None, again: bool) -> str:
    name = printable(row.file_name)
    if again:
        return f"{name}: a second row for this image; remove one of them"
    if item is None:
        return f"{name}: {damage.message if damage else 'no such image'}; curate again"
    if file_sha256(item.path) != row.image_sha256:
        return f"{name}: another image than when the manifest was written; curate again"
    if captions_sha256(item.captions) != row.caption_sha256:
        now = repr(printable(item.caption, 60)) if item.caption else "none"
        return f"{name}: its caption was changed after the manifest was written (now {now}); curate again"
    return ""


def _why_not_its_sources(row: ManifestRow, items: Mapping[str, Item]) -> str:
    """The same for the dropped copies that it has captions of; one that was removed since takes nothing back."""
    for source in row.captions_from:
        copy = items.get(source.dropped)
        if copy is not None and captions_sha256(copy.captions) != source.caption_sha256:
            return (
                f"{printable(row.file_name)}: it has the caption of its copy {printable(source.dropped)}, which was "
                "changed after the manifest was written; curate again"
            )
    return ""
