"""The curated set as folders that any trainer reads: links to the images that stay, a text of captions beside each.

Trainers read whole folders, so what is left out must not lie in one. The folders are laid out as sd-scripts names them
(`10_ohwx man`); images with several captions have folders of their own, one caption a line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..core.files import write_text
from ..core.folder_files import CURATED
from .decisions import Decision
from .folder import Folder, Item
from .kohya_layout import Concept

CONTENTS = "contents.json"  # what the last curation put there, so that it can be taken away again
FIRST_CAPTION = ".first"  # ending of a text with the first caption alone, for ai-toolkit, which takes one


@dataclass(frozen=True)
class TrainerSubset:
    """A folder of images that a trainer treats alike.

    Attributes:
        folder: where they lie.
        repeats: how often an epoch shows each.
        words: identifier and class that its folder named; "" when it named none.
        variants: each has several captions, one a line.
        regularization: pictures of what the class already was, left as they were.
        captioned: texts lie beside the images.
    """

    folder: Path
    repeats: int
    words: str = ""
    variants: bool = False
    regularization: bool = False
    captioned: bool = True


@dataclass(frozen=True)
class TrainerFolders:
    """Subsets, and what lies in those that were made here.

    Attributes:
        root: the folder that holds them.
        subsets: all of them, regularization last.
        images: image by its place below the root, with forward slashes.
        texts: content by place likewise.
    """

    root: Path
    subsets: tuple[TrainerSubset, ...]
    images: Mapping[str, Path]
    texts: Mapping[str, str]


def plan_folders(out: Path, folder: Folder, decisions: Sequence[Decision], items: Sequence[Item]) -> TrainerFolders:
    """Where each image that stays goes, below `out`; nothing is written."""
    root, by_name = out.resolve() / CURATED, {item.file_name: item for item in items}
    subsets: dict[str, TrainerSubset] = {}
    images: dict[str, Path] = {}
    texts: dict[str, str] = {}
    taken: set[str] = set()
    for decision in (decision for decision in decisions if decision.action != "drop"):
        item = by_name[decision.file_name]
        subset = _subset_of(root, decision, item.words)
        subsets[subset.folder.name] = subset
        place = _free(f"{subset.folder.name}/{decision.file_name.replace('/', '-')}", taken)
        images[place] = item.path.resolve()
        stem = str(PurePosixPath(place).with_suffix(""))
        if decision.captions:
            texts[f"{stem}.txt"] = "\n".join(decision.captions) + "\n"
        if subset.variants:
            texts[stem + FIRST_CAPTION] = decision.captions[0] + "\n"
    trained = tuple(subset for _, subset in sorted(subsets.items()))
    beside = tuple(_regularization(path.resolve(), concept) for path, concept in folder.regularization)
    texts |= {words_file(subset): subset.words + "\n" for subset in beside if not subset.captioned}
    return TrainerFolders(root, trained + beside, images, texts)


def words_file(subset: TrainerSubset) -> str:
    """Below the root, the words of a folder for regularization that has no captions of its own."""
    return f"{subset.folder.name}.words.txt"


def _regularization(folder: Path, concept: Concept) -> TrainerSubset:
    captioned = next(folder.glob("*.txt"), None) is not None
    return TrainerSubset(folder, concept.repeats, concept.words, regularization=True, captioned=captioned)


def _subset_of(root: Path, decision: Decision, words: str) -> TrainerSubset:
    variants = len(decision.captions) > 1
    name = f"{decision.repeats}_{words or 'images'}{', several captions' if variants else ''}"
    return TrainerSubset(root / name, decision.repeats, words, variants)


def _free(place: str, taken: set[str]) -> str:
    """The place, numbered where its stem is taken: two images of one stem would share a text."""
    path, number = PurePosixPath(place), 1
    while str(stem := path.with_suffix("")).casefold() in taken:
        number += 1
        path = PurePosixPath(place).with_stem(f"{PurePosixPath(place).stem}-{number}")
    taken.add(str(stem).casefold())
    return str(path)


def make_folders(plan: TrainerFolders) -> None:
    """Writes the folders anew: what the last curation put there and this one does not is taken away, nothing else.

    Raises:
        OSError: a file cannot be written.
    """
    contents = plan.root / CONTENTS
    earlier: list[str] = []
    with suppress(OSError, ValueError):
        earlier = [str(name) for name in json.loads(contents.read_bytes())["files"]]
    wanted = {*plan.images, *plan.texts}
    for name in earlier:
        if name not in wanted and ".." not in PurePosixPath(name).parts:
            (plan.root / name).unlink(missing_ok=True)
    plan.root.mkdir(parents=True, exist_ok=True)
    write_text(contents, json.dumps({"files": sorted({*earlier, *wanted})}, ensure_ascii=False))
    for name, source in plan.images.items():
        _link(source, plan.root / name)
    for name, text in plan.texts.items():
        write_text(plan.root / name, text)
    write_text(contents, json.dumps({"files": sorted(wanted)}, ensure_ascii=False))


def _link(source: Path, place: Path) -> None:
    """The image itself under a second name; a copy on a disk that has no such links."""
    place.parent.mkdir(exist_ok=True)
    if place.exists() and place.samefile(source):
        return
    partial = place.with_name(f".{place.name}.{os.getpid()}")  # so that two runs at once do not meet
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another disk, or one without links
        try:
            partial.symlink_to(source)
        except OSError:
            shutil.copyfile(source, partial)
    partial.replace(place)
    partial.unlink(missing_ok=True)  # still there where another run had made the same link
