"""One set out of several folders: names that say from which folder an image is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core.text import printable
from .folder import Folder, read_folder


def read_folders(directories: Sequence[Path]) -> Folder:
    """Folders read as one; nothing is decoded. Of several, names begin with the label of their folder.

    Raises:
        FileNotFoundError, NotADirectoryError: see `read_folder`.
        ValueError: no folder, or one that lies in another of them.
    """
    if len(directories) == 1:
        return read_folder(directories[0], decode=False)
    labels = source_labels(directories)
    folders = [read_folder(directory, decode=False) for directory in directories]
    pairs = list(zip(labels, folders, strict=True))
    return Folder(
        directories[0],
        tuple(replace(item, file_name=f"{label}/{item.file_name}") for label, folder in pairs for item in folder.items),
        tuple(
            replace(problem, file=f"{printable(label)}/{problem.file}")
            for label, folder in pairs
            for problem in folder.problems
        ),
        tuple(prior for folder in folders for prior in folder.regularization),
    )


def source_labels(directories: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with those of the folders above it where two are called alike.

    Example:
        >>> source_labels([Path("/a/cats"), Path("/b/cats"), Path("/dogs")])
        ['a-cats', 'b-cats', 'dogs']
    """
    if not directories:
        raise ValueError("no folder given; give the folders that hold the images")
    places = [directory.resolve() for directory in directories]
    for first, one in enumerate(places):
        for second, two in enumerate(places):
            if first != second and one.is_relative_to(two):
                raise ValueError(f"{directories[first]} lies in {directories[second]}; give one of them")
    counts = Counter(place.name for place in places)
    return [place.name if counts[place.name] == 1 else "-".join(place.parts[1:]) for place in places]
