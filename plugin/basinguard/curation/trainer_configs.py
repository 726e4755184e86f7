"""A curation as the data configs of two trainers: kohya's sd-scripts and SimpleTuner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .decisions import Decision
from .folder import Item


def kohya_files(directory: Path, out: Path, decisions: Sequence[Decision], *, resolution: int) -> dict[str, bytes]:
    """A dataset config for sd-scripts (`--dataset_config`) and the metadata files it names, by file name.

    One subset for each number of repeats. Captions are joined by line breaks, of which `enable_wildcard` draws one.

    Source: kohya-ss/sd-scripts, docs/config_README-en.md, "Fine-tuning method specific options", "Multi-line captions".
    """
    files: dict[str, bytes] = {}
    lines = ["[general]", "enable_wildcard = true", "", "[[datasets]]"]
    lines += [f"resolution = {resolution}", "enable_bucket = true"]
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
    rows = [decision for decision in decisions if decision.action != "drop"]
    return [(n, [row for row in rows if row.repeats == n]) for n in sorted({row.repeats for row in rows})]


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
