"""A `datasets` dataset as an image folder, because a manifest and other trainers need files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from .captionfiles import CAPTION_COLUMNS
from .manifest import write_bytes


def export_dataset(dataset: Any, directory: Path) -> None:
    """Writes the original bytes of a dataset's images, with their captions, as an imagefolder.

    Args:
        dataset: a `datasets.Dataset` with an image column and, if any, a column text, caption or prompt.
        directory: where to; made when it is not there.

    Raises:
        ValueError: several splits, or no image column.
    """
    import datasets

    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ValueError(f"a dict of splits given ({', '.join(dataset)}); give one of them, such as dataset['train']")
    column = next((n for n, f in (dataset.features or {}).items() if isinstance(f, datasets.Image)), None)
    if column is None:
        raise ValueError(f"no image column among {list(dataset.features or {})}; cast one with datasets.Image()")
    text = next((name for name in CAPTION_COLUMNS if name in dataset.features), None)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, row in enumerate(dataset.cast_column(column, datasets.Image(decode=False))):
        content = row[column]["bytes"] or Path(row[column]["path"]).read_bytes()
        name = f"{number:08d}.{_suffix(content)}"
        write_bytes(directory / name, content)
        rows.append({"file_name": name, "text": row[text] if text else ""})
    write_bytes(directory / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return (image.format or "png").lower()
    except (UnidentifiedImageError, OSError):
        return "png"  # a damaged image keeps its place and becomes a problem later
