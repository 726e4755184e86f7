"""Which training images are copies of one picture: by a curation, and by equal content."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from scipy.cluster.hierarchy import DisjointSet

from ..core.files import file_sha256
from .image_files import image_paths


def duplicate_groups(data: Path, curation: Path, only: Collection[str] | None = None) -> list[int]:
    """Duplicate group of each training image, as `basinguard curate` found them.

    Args:
        data: folder of training images.
        curation: its curation.json.
        only: names of those in the folder that are meant; None means all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a curation.json, or one of another folder.
    """
    if not curation.is_file():
        raise FileNotFoundError(f"{curation}: no such file; `basinguard curate {data}` writes one")
    try:
        groups = [group["files"] for group in json.loads(curation.read_text())["groups"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{curation}: not a curation.json ({type(error).__name__}: {str(error)[:200]})") from None
    names = {path.relative_to(data).as_posix(): number for number, path in enumerate(image_paths(data))}
    owner = list(range(len(names)))
    for files in groups:
        strange = [name for name in files if name not in names]
        if strange:
            raise ValueError(
                f"{curation} names {strange[0]!r}, which is not in {data}: was it made for another folder?"
            )
        for name in files:
            owner[names[name]] = names[files[0]]
    return owner if only is None else [owner[number] for name, number in names.items() if name in only]


def merge_groups(groups: Sequence[int], files: Sequence[Path]) -> list[int]:
    """Groups of files, with those of equal content brought together.

    Raises:
        ValueError: another number of groups than files.
    """
    if len(groups) != len(files):
        raise ValueError(f"{len(groups)} groups given for {len(files)} training images; expected one each")
    pictures = DisjointSet(groups)
    first: dict[str, int] = {}
    for path, group in zip(files, groups, strict=True):
        pictures.merge(group, first.setdefault(file_sha256(path), group))
    merged = {group: min(members) for members in pictures.subsets() for group in members}
    return [merged[group] for group in groups]
