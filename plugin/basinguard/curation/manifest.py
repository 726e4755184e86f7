"""What a curation leaves on disk: curation.json, a manifest for `datasets`, and the configs of two trainers.

Everything is written to a temporary file first and then renamed, so a full disk or Ctrl-C leaves the old file or none.
The manifest is the only thing that may be written beside the images, because `load_dataset` reads it from there only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..records import Noun
from .actions import Decision
from .folder import Item
from .remedies import Remedy

MANIFEST = "metadata.curated.jsonl"


class Settings(Noun):
    """What a curation was made with; the same folder and settings give the same curation.json, byte for byte."""

    embedder: str
    views: str = ""
    thresholds: dict[str, float]
    repeats: int
    basinguard: str


class GroupRecord(Noun):
    """Copies of one picture: their files, the representative first, and why it is proposed to stay."""

    files: tuple[str, ...]
    reason: str


class LeakRecord(Noun):
    """A training image whose picture is also in the held-out set."""

    file_name: str
    heldout: str
    similarity: float


class ProblemRecord(Noun):
    """A line of what is wrong, see `folder.Problem`."""

    code: str
    file: str
    message: str
    skipped: bool


class Curation(Noun):
    """A whole curation, as in curation.json; no absolute paths and no dates, so that two runs compare.

    `run` says where evidence of a training run was read, and `remedies` what it calls for, most memorized first.
    """

    schema_version: Literal[1] = 1
    settings: Settings
    decisions: tuple[Decision, ...]
    groups: tuple[GroupRecord, ...]
    leaks: tuple[LeakRecord, ...]
    run: str = ""
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...]
    problems: tuple[ProblemRecord, ...]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: no space, no permission; nothing is left behind and an older file is unchanged.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


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


class ManifestRow(Noun):
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


def kohya_files(directory: Path, out: Path, decisions: Sequence[Decision], *, resolution: int) -> dict[str, bytes]:
    """A dataset config for sd-scripts (`--dataset_config`) and the metadata files it names, by file name.

    One subset for each number of repeats. Captions are joined by line breaks, of which `enable_wildcard` draws one.

    Source: kohya-ss/sd-scripts, docs/config_README-en.md, "Fine-tuning method specific options", "Multi-line captions".
    """
    files: dict[str, bytes] = {}
    lines = [
        "[general]",
        "enable_wildcard = true",
        "",
        "[[datasets]]",
        f"resolution = {resolution}",
        "enable_bucket = true",
    ]
    for repeats, rows in _by_repeats(decisions):
        name = f"kohya_repeats_{repeats}.json"
        metadata = {
            str(directory.resolve() / row.file_name): {"caption": "\n".join(map(_no_wildcards, row.captions))}
            for row in rows
        }
        files[name] = json.dumps(metadata, ensure_ascii=False, indent=1).encode()
        lines += [
            "",
            "  [[datasets.subsets]]",
            f"  image_dir = {_toml(str(directory.resolve()))}",
            f"  metadata_file = {_toml(str(out.resolve() / name))}",
            f"  num_repeats = {repeats}",
        ]
    files["kohya.toml"] = ("\n".join(lines) + "\n").encode()
    return files


def simpletuner_files(
    directory: Path, out: Path, decisions: Sequence[Decision], items: Sequence[Item], *, resolution: int
) -> dict[str, bytes]:
    """A dataloader config for SimpleTuner and the tables it names, by file name.

    One backend for each number of repeats. SimpleTuner counts repeats from 0 and skips images outside its table.

    Source: bghira/SimpleTuner, documentation/DATALOADER.md, "Parquet caption strategy" and "repeats".
    """
    facts = {item.file_name: item.facts for item in items}
    files: dict[str, bytes] = {}
    backends: list[dict[str, object]] = []
    for repeats, rows in _by_repeats(decisions):
        name = f"simpletuner_repeats_{repeats}.parquet"
        files[name] = _parquet(
            {
                "file_name": [row.file_name for row in rows],
                "captions": [list(row.captions) or [""] for row in rows],
                "width": [facts[row.file_name].width for row in rows],
                "height": [facts[row.file_name].height for row in rows],
            }
        )
        backends.append(_backend(directory.resolve(), out.resolve(), name, repeats, resolution))
    text_embeds = {
        "id": "basinguard-text-embeds",
        "type": "local",
        "dataset_type": "text_embeds",
        "default": True,
        "cache_dir": str(out.resolve() / "simpletuner-cache" / "text"),
    }
    files["simpletuner.json"] = (json.dumps([*backends, text_embeds], ensure_ascii=False, indent=2) + "\n").encode()
    return files


def _backend(directory: Path, out: Path, table: str, repeats: int, resolution: int) -> dict[str, object]:
    return {
        "id": f"basinguard-repeats-{repeats}",
        "type": "local",
        "instance_data_dir": str(directory),
        "caption_strategy": "parquet",
        "metadata_backend": "parquet",
        "parquet": {
            "path": str(out / table),
            "filename_column": "file_name",
            "caption_column": "captions",
            "width_column": "width",
            "height_column": "height",
            "identifier_includes_extension": True,
        },
        "resolution": resolution,
        "resolution_type": "pixel",
        "cache_dir_vae": str(out / "simpletuner-cache" / f"vae-{repeats}"),
        "repeats": repeats - 1,
    }


def _by_repeats(decisions: Sequence[Decision]) -> list[tuple[int, list[Decision]]]:
    kept = [decision for decision in decisions if decision.action != "drop"]
    return [(n, [row for row in kept if row.repeats == n]) for n in sorted({row.repeats for row in kept})]


def _no_wildcards(caption: str) -> str:
    """Braces doubled, because `enable_wildcard` gives single ones a meaning."""
    return caption.replace("{", "{{").replace("}", "}}")


def _toml(text: str) -> str:
    """A TOML basic string; its escapes are JSON's, besides DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _parquet(columns: dict[str, list]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()
