"""Captions in a trainer's table, away from the images: sd-scripts' metadata files and SimpleTuner's parquet.

Only the images that a table names are trained on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Captions = dict[Path, str]  # by the image's path, with its ending or without


def sd_scripts_captions(table: Path, images: str, separator: str = ", ", wildcards: bool = False) -> Captions:
    """Captions of a `metadata_file`: JSON by image, or a line of JSON for each; tags come after the caption.

    Args:
        table: the file.
        images: `image_dir`, where paths that are relative begin; "" for none.
        separator: between caption and tags.
        wildcards: whether each line of a caption is a variant, of which the first is taken, and braces are doubled.

    Raises:
        OSError: it cannot be read.
        ValueError: not laid out so.

    Source: kohya-ss/sd-scripts, library/train_util.py, FineTuningDataset.
    """
    text = table.read_text("utf-8-sig")
    if table.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = {line["image_path"]: line for line in lines}
    else:
        rows = json.loads(text)
    captions = {}
    for name, row in rows.items():
        path = Path(images, name)
        if not path.is_absolute() and not images:
            raise ValueError(f"{table}: {name!r} is relative, and no image_dir says to what")
        captions[path] = _caption(row, separator, wildcards)
    return captions


def _caption(row: Mapping[str, Any], separator: str, wildcards: bool) -> str:
    caption, tags = str(row.get("caption") or ""), str(row.get("tags") or "")
    if wildcards:
        lines = [line for line in caption.split("\n") if line.strip()]
        caption = (lines or [""])[0].replace("{{", "{").replace("}}", "}")
    return separator.join(filter(None, (caption, tags)))


def simpletuner_captions(backend: Mapping[str, Any], table: Path) -> Captions:
    """Captions of a backend with `caption_strategy` "parquet"; of several for an image, the first.

    Raises:
        OSError: it cannot be read.
        ValueError: no parquet file, or without the columns that the backend names.

    Source: bghira/SimpleTuner, documentation/DATALOADER.md, "Parquet caption strategy".
    """
    import pyarrow.parquet

    columns = backend["parquet"]
    names, texts = str(columns["filename_column"]), str(columns["caption_column"])
    rows = pyarrow.parquet.read_table(table).to_pydict()
    if not {names, texts} <= rows.keys():
        raise ValueError(f"{table}: has columns {', '.join(rows)}, not {names!r} and {texts!r}")
    folder = Path(str(backend.get("instance_data_dir") or ""))
    return {folder / str(name): _first(text) for name, text in zip(rows[names], rows[texts], strict=True)}


def _first(text: Any) -> str:
    return str((text or [""])[0] if isinstance(text, list) else text or "")


def by_folder(captions: Captions) -> dict[Path, Captions]:
    """The captions of each folder's images."""
    folders: defaultdict[Path, Captions] = defaultdict(dict)
    for path, caption in captions.items():
        folders[path.parent][path] = caption
    return dict(folders)
