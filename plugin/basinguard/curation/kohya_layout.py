"""The folders of sd-scripts: in `10_ohwx man` every image is shown ten times an epoch and, uncaptioned, is "ohwx man".

Source: sd-scripts, library/config_util.py, generate_dreambooth_subsets_config_by_subdirs. Pictures in `reg` keep what
the class already was, and are not what must not come back.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

CONCEPT = re.compile(r"([1-9]\d{0,2})_(.*\S.*)")  # `2024_summer` and `01_portraits` are names, not numbers of repeats
REGULARIZATION = frozenset({"reg", "regularization", "regularisation", "reg_images"})


@dataclass(frozen=True)
class Concept:
    """What the folder of an image says.

    Attributes:
        repeats: how often an epoch shows its images.
        words: identifier and class.
    """

    repeats: int
    words: str


def concept_of(file_name: str) -> Concept | None:
    """The concept of an image, by the folder that it lies in; None where that is no concept's.

    Example:
        >>> concept_of("img/10_ohwx man/a.png"), concept_of("2024_summer/a.png")
        (Concept(repeats=10, words='ohwx man'), None)
    """
    match = CONCEPT.fullmatch(PurePosixPath(file_name).parent.name)
    return Concept(int(match[1]), match[2].strip()) if match else None


def is_regularization(file_name: str) -> bool:
    """Whether an image lies in a concept's folder below one for regularization.

    Example:
        >>> is_regularization("reg/1_man/a.png"), is_regularization("reg/a.png")
        (True, False)
    """
    parents = PurePosixPath(file_name).parents
    return concept_of(file_name) is not None and any(part.name.lower() in REGULARIZATION for part in parents)


def concepts_of(images: Sequence[str]) -> dict[str, Concept]:
    """The concept of every image that is trained on; empty unless all of them lie in concepts' folders."""
    concepts = {name: concept_of(name) for name in images if not is_regularization(name)}
    return {name: c for name, c in concepts.items() if c} if all(concepts.values()) else {}


def regularization_folders(images: Iterable[str]) -> dict[str, Concept]:
    """Folders of pictures for regularization, each with what its name says."""
    folders = _by_folder(name for name in images if is_regularization(name))
    concepts = {folder: concept_of(inside[0]) for folder, inside in folders.items()}
    return {folder: concept for folder, concept in concepts.items() if concept}


def notes(images: Sequence[str], concepts: dict[str, Concept], captioned: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What to tell: (folder, message) of each concept, and of pictures for regularization.

    Args:
        images: all of the folder.
        concepts: of `concepts_of`.
        captioned: images that have captions of their own.
    """
    if not concepts:
        return
    for folder, inside in _by_folder(concepts).items():
        concept, bare = concepts[inside[0]], sum(name not in captioned for name in inside)
        called = f"; {bare} without a caption are called {concept.words!r}" if bare else ""
        yield folder, f"{len(inside)} images, read as sd-scripts does: shown {concept.repeats} times an epoch{called}"
    for folder, inside in _by_folder(name for name in images if is_regularization(name)).items():
        yield folder, f"{len(inside)} pictures for regularization, left out: they are not what must not come back"


def _by_folder(images: Iterable[str]) -> dict[str, list[str]]:
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in images:
        folders[str(PurePosixPath(name).parent)].append(name)
    return dict(sorted(folders.items()))
