"""A `datasets` dataset as an image folder, because a manifest and other trainers need files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.files import write_bytes
from ..core.images import BadImage, open_image
from .caption_files import CAPTION_COLUMNS


def export_dataset(dataset: Any, directory: Path) -> None:
    """Writes the original bytes of a dataset's images, with their captions, as an imagefolder.

    Args:
        dataset: a `datasets.Dataset` with an image column and, if any, a column text, caption or prompt.
        directory: where to; made when it is not there.

    Raises:
        ValueError: several splits, or no image column.
    """
    if isinstance(dataset, dict):
        raise ValueError(f"a dict of splits given ({', '.join(dataset)}); give one of them, such as dataset['train']")
    features = getattr(dataset, "features", None) or {}
    column = next((name for name, feature in features.items() if type(feature).__name__ == "Image"), None)
    if column is None:
        raise ValueError(f"no image column among {list(features)}; give a folder, or a dataset with datasets.Image()")
    text = next((name for name in CAPTION_COLUMNS if name in features), None)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, row in enumerate(undecoded(dataset, column)):
        content = encoded(row[column])
        name = f"{number:08d}.{_suffix(content)}"
        write_bytes(directory / name, content)
        rows.append({"file_name": name, "text": row[text] if text else ""})
    write_bytes(directory / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def undecoded(dataset: Any, column: str) -> Any:
    """The dataset with its images as they were stored, because `datasets` would let any format in."""
    feature = dataset.features[column]  # its class comes with the dataset, so `datasets` is not imported
    return dataset.cast_column(column, type(feature)(decode=False)) if hasattr(feature, "decode") else dataset


def encoded(cell: Any) -> bytes:
    """The bytes of an image in a row of an undecoded dataset."""
    return cell if isinstance(cell, bytes) else cell["bytes"] or Path(cell["path"]).read_bytes()


def _suffix(content: bytes) -> str:
    try:
        with open_image(content) as image:
            return (image.format or "png").lower()
    except BadImage:
        return "png"  # a damaged image keeps its place and becomes a problem later
