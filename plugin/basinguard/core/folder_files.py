"""The files of a folder as every part of the project sees them, and those in it that are no picture of the set.

Storage boxes, file managers, archives and trainers leave files beside images that end like images and are none.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .images import SUFFIXES
from .text import printable

CURATED = "basinguard-images"  # links to the images that a curation keeps, which are no second set
LITTER_FOLDERS = frozenset({CURATED, "@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin"})
LITTER_FILES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"})
SIDECAR = "._"  # begins what macOS writes beside a file on a disk that is not its own
LABELS = ("-masklabel", "-condlabel")  # of OneTrainer: never a picture of the set
MASKS = ("_mask", "-mask", ".mask")  # of others: a picture of the set where it has a caption of its own


@dataclass(frozen=True)
class FolderFiles:
    """What lies in a folder and its subfolders, hidden files left out.

    Attributes:
        names: of files, relative to it, with forward slashes, sorted.
        links: folders that are links and so not followed.
        unlisted: folders that cannot be listed, each with the reason.
        left_out: files of no picture by their kind, such as "@eaDir" or "masks", with the number of each.
        first_left_out: one of these; "" when there is none.
    """

    names: tuple[str, ...]
    links: tuple[str, ...] = ()
    unlisted: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    first_left_out: str = ""

    @property
    def note(self) -> str:
        """One line about what was left out; "" when nothing was."""
        count = sum(number for _, number in self.left_out)
        kinds = ", ".join(f"{printable(kind)} {number}" for kind, number in self.left_out)
        return f"{count} {'file' if count == 1 else 'files'} of no picture left out: {kinds}" if count else ""


def list_files(folder: Path) -> FolderFiles:
    """Every file below a folder but hidden ones and files of no picture; links to folders are not followed.

    Files of no picture are thumbnails and forks that a system leaves (`@eaDir`, `__MACOSX`, `._x`, `.DS_Store`,
    `Thumbs.db`), masks beside the image that they belong to (`x-masklabel.png`, `x_mask.png`), and hidden images.
    """
    links: list[str] = []
    unlisted: list[tuple[str, str]] = []
    kinds = {name: _kind(name) for name in sorted(_walk(folder, links, unlisted))}
    kinds |= dict.fromkeys(_masks(name for name, kind in kinds.items() if kind is None), "masks")
    names = tuple(name for name, kind in kinds.items() if kind is None)
    left_out = {name: kind for name, kind in kinds.items() if kind}
    counts = tuple(sorted(Counter(left_out.values()).items()))
    return FolderFiles(names, tuple(links), tuple(unlisted), counts, next(iter(left_out), ""))


def _walk(folder: Path, links: list[str], unlisted: list[tuple[str, str]]) -> Iterator[str]:
    def remember(error: OSError) -> None:
        unlisted.append((os.path.relpath(error.filename or folder, folder), error.strerror or type(error).__name__))

    for parent, folders, names in os.walk(folder, onerror=remember):
        relative = Path(parent).relative_to(folder).as_posix()
        prefix = "" if relative == "." else relative + "/"
        links += [prefix + name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders.sort()
        yield from (prefix + name for name in names)


def _kind(name: str) -> str | None:
    """Which kind of file of no picture this is; "" for other hidden files, None for all that are not hidden."""
    path = PurePosixPath(name)
    for part in path.parts[:-1]:
        if part.lower() in LITTER_FOLDERS:
            return part
    if path.name.lower() in LITTER_FILES:
        return path.name
    if path.name.startswith(SIDECAR):
        return f"{SIDECAR}*"
    if any(part.startswith(".") for part in path.parts):
        return "hidden images" if path.suffix.lower() in SUFFIXES else ""
    return None


def _masks(names: Iterable[str]) -> list[str]:
    """Masks among these files: each beside an image of the same name without the ending."""
    paths = [PurePosixPath(name) for name in names]
    images = {path.with_suffix("") for path in paths if path.suffix.lower() in SUFFIXES}
    captioned = {path.with_suffix("") for path in paths if path.suffix.lower() not in SUFFIXES}

    def is_mask(path: PurePosixPath) -> bool:
        bare = path.with_suffix("")
        ends = LABELS if bare in captioned else LABELS + MASKS
        cut = [len(end) for end in ends if bare.name.lower().endswith(end) and len(bare.name) > len(end)]
        return any(bare.with_name(bare.name[:-length]) in images for length in cut)

    return [str(path) for path in paths if path.suffix.lower() in SUFFIXES and is_mask(path)]
