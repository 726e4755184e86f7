"""An image folder with captions, read once: what can be used, and a complete list of what cannot and why.

Nothing is written, moved or renamed. A captioned folder is either an "imagefolder" (metadata.jsonl, .csv or .parquet
with a column file_name and one of text, caption, prompt) or images with a `.txt` of the same name beside each.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..core.folder_files import FolderFiles, list_files
from ..core.images import FILMS, SUFFIXES, UNREAD, BadImage, Facts, read_facts
from ..core.text import one_line, printable
from .caption_files import CAPTION_SUFFIXES, METADATA_NAMES, CaptionRow, read_caption_text, read_metadata
from .kohya_layout import Concept, concepts_of, notes, regularization_folders


@dataclass(frozen=True)
class Item:
    """One image that can be used.

    Attributes:
        path: where it lies.
        file_name: the same, relative to the folder, with forward slashes; names the image in every output.
        caption: its caption; "" when there is none.
        variants: further captions of the same image.
        facts: size, mode and oddities of the file.
        repeats: how often its folder asks for it in an epoch.
        words: identifier and class that its folder names; "" when it names none.
    """

    path: Path
    file_name: str
    caption: str
    variants: tuple[str, ...]
    facts: Facts
    repeats: int = 1
    words: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption and its variants; empty when there is none."""
        return ((self.caption, *self.variants)) if self.caption else ()


@dataclass(frozen=True)
class Problem:
    """One line of what is wrong.

    Attributes:
        code: a short name for the kind of problem, such as "truncated" or "row-missing-file".
        file: which file, relative to the folder, made printable on one line.
        message: what was found, what is accepted, what to do.
        skipped: the image was left out because of it.
    """

    code: str
    file: str
    message: str
    skipped: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.message}{' [skipped]' if self.skipped else ''}"


@dataclass(frozen=True)
class Folder:
    """What `read_folder` found: usable images ordered by name, and every problem on the way.

    `regularization` are folders of pictures that are not trained on as the rest is, with what their names say.
    """

    directory: Path
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    regularization: tuple[tuple[Path, Concept], ...] = ()


def read_folder(directory: Path, *, decode: bool = True, lines: bool = False) -> Folder:
    """Reads a folder of images and captions.

    Args:
        directory: the folder; subfolders are read too, links to folders are not followed.
        decode: also decode every image, to find the ones that are cut off. Without it only headers are read.
        lines: each line of a text file is a caption of its own; without it they are joined to one.

    Returns:
        Items ordered by `file_name`, and problems ordered by file. An image without a caption is an item with
        caption "" and a problem; a damaged one is a problem only.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: a file was given.

    Example:
        >>> folder = read_folder(Path("photos"))                                      # doctest: +SKIP
        >>> [(item.file_name, item.caption) for item in folder.items]                 # doctest: +SKIP
        [('cat.png', 'a cat on a sofa')]
    """
    directory = Path(directory)
    if not directory.exists():
        raise FileNotFoundError(f"{printable(str(directory))}: no such folder; give the folder that holds the images")
    if not directory.is_dir():
        raise NotADirectoryError(f"{printable(str(directory))} is a file; give the folder that holds the images")
    listing = list_files(directory)
    problems = list(_about_files(listing))
    files = list(listing.names)
    images = [name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES]
    problems += _unread(files)
    captions = _collect_captions(directory, files, images, problems, lines=lines)
    concepts = concepts_of(images)
    lines_of_layout = notes(images, concepts, frozenset(name for name in captions if captions[name]))
    problems += [Problem("sd-scripts-layout", printable(where), printable(said)) for where, said in lines_of_layout]
    used = list(concepts or images)
    items = [item for n in used if (item := _read_item(directory, n, captions, concepts.get(n), decode, problems))]
    prior = regularization_folders(images) if concepts else {}
    ordered = tuple(sorted(problems, key=lambda p: (p.file, p.code, p.message)))
    return Folder(directory, tuple(items), ordered, tuple((directory / name, each) for name, each in prior.items()))


def _about_files(listing: FolderFiles) -> Iterator[Problem]:
    for where, reason in listing.unlisted:
        yield Problem("unreadable", printable(where), f"folder cannot be listed ({reason})", True)
    for name in listing.links:
        message = "a link to a folder is not followed; put the folder itself here, or curate it on its own"
        yield Problem("link-to-folder", printable(name), message, True)
    if listing.note:
        yield Problem("left-out", printable(listing.first_left_out), listing.note)


def _unread(files: list[str]) -> Iterator[Problem]:
    """One line for each type of picture, table or video that is not read, with how many there are."""
    suffixes = [PurePosixPath(name).suffix.lower() for name in files]
    counts = Counter(suffix for suffix in suffixes if suffix in UNREAD)
    for suffix, count in sorted(counts.items()):
        first = next(name for name, each in zip(files, suffixes, strict=True) if each == suffix)
        more = f" and {count - 1} more" if count > 1 else ""
        message = f"{count} of type {suffix}, which is not read; {UNREAD[suffix]}"
        yield Problem("type-not-read", printable(first) + more, message, suffix not in FILMS)
    for name in files:
        if PurePosixPath(name).name.lower() in UNREAD_TABLES:
            message = f"not read; call it one of {', '.join(METADATA_NAMES)}, with a column file_name"
            yield Problem("metadata-name", printable(name), message)


UNREAD_TABLES = frozenset(
    f"{stem}{suffix}"
    for stem in ("captions", "caption", "labels", "prompts", "dataset", "train", "data", "metadata", "meta")
    for suffix in (".csv", ".jsonl", ".json", ".parquet", ".tsv")
) - frozenset(METADATA_NAMES)


def _composed(name: str) -> str:
    """One spelling for names that a Mac and other machines write with different characters."""
    return unicodedata.normalize("NFC", name)


def _collect_captions(
    directory: Path, files: list[str], images: list[str], problems: list[Problem], *, lines: bool
) -> dict[str, tuple[str, ...]]:
    """Captions of every image that has some, from metadata files first and text files for the rest."""
    image_names = {_composed(name): name for name in images} | {name: name for name in images}
    rows_by_image: dict[str, list[tuple[str, ...]]] = {}
    # the deepest metadata file speaks first, as in `datasets`
    for name in sorted(_metadata_files(files, problems), key=lambda n: (-n.count("/"), n)):
        for file_name, texts in _named_captions(directory, name, image_names, problems):
            rows_by_image.setdefault(file_name, []).append(texts)
    for name, rows in rows_by_image.items():
        if len(rows) > 1:
            message = f"{len(rows)} rows name this image; it is read once, with their captions as variants"
            problems.append(Problem("rows-for-one-image", printable(name), message))
    captions = {
        name: tuple(dict.fromkeys(text for row in rows for text in row)) for name, rows in rows_by_image.items()
    }
    return _add_text_files(directory, files, images, captions, problems, lines=lines)


def _metadata_files(files: list[str], problems: list[Problem]) -> list[str]:
    """One metadata file for each folder; a second one is a problem, as it is for `datasets`."""
    chosen: dict[PurePosixPath, str] = {}
    rank = {name: position for position, name in enumerate(METADATA_NAMES)}
    for name in sorted((f for f in files if PurePosixPath(f).name in rank), key=lambda f: rank[PurePosixPath(f).name]):
        first = chosen.setdefault(PurePosixPath(name).parent, name)
        if first != name:
            message = f"not read, because {PurePosixPath(first).name} lies beside it; keep one of them"
            problems.append(Problem("metadata-ambiguous", printable(name), message))
    return list(chosen.values())


def _named_captions(
    directory: Path, metadata: str, image_names: dict[str, str], problems: list[Problem]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    parent = PurePosixPath(metadata).parent
    for row in read_metadata(directory / metadata):
        at = f"{printable(metadata)}{f', row {row.number}' if row.number else ''}"
        if not isinstance(row, CaptionRow):
            problems.append(Problem(row.code, at, row.message))
            continue
        reason = _why_outside(row.file_name)
        given = (parent / row.file_name).as_posix()
        choices = (given, _composed(given), _composed(given.replace("\\", "/")))
        name = next((image_names[choice] for choice in choices if choice in image_names), None)
        if reason:
            message = (
                f"file_name {printable(row.file_name[:200])!r} {reason}; only files below this one's folder are read"
            )
            problems.append(Problem("row-escapes", at, message, True))
        elif name is None:
            message = f"names {printable(row.file_name[:200])!r}, which is no image here; correct or remove the row"
            problems.append(Problem("row-missing-file", at, message, True))
        else:
            yield name, row.captions


def _why_outside(file_name: str) -> str:
    if "://" in file_name:
        return "is an address"
    if file_name.startswith(("/", "\\")) or file_name[1:3] in (":\\", ":/"):
        return "is absolute"
    return "leads out of the folder" if ".." in file_name.replace("\\", "/").split("/") else ""


def _add_text_files(
    directory: Path,
    files: list[str],
    image_names: list[str],
    captions: dict[str, tuple[str, ...]],
    problems: list[Problem],
    *,
    lines: bool,
) -> dict[str, tuple[str, ...]]:
    stems: dict[str, list[str]] = {}
    for name in sorted(image_names):
        stems.setdefault(_stem(name), []).append(name)
    merged, first_of = dict(captions), dict[str, str]()
    for name in sorted(files, key=_caption_rank):
        if PurePosixPath(name).suffix.lower() not in CAPTION_SUFFIXES:
            continue
        images = stems.get(_stem(name), [])
        first = first_of.setdefault(_stem(name), name)
        if first != name:
            message = f"not read, because {printable(PurePosixPath(first).name)} lies beside it; keep one of them"
            problems.append(Problem("caption-ambiguous", printable(name), message))
            continue
        if not images and not any(_stem(other) == _stem(name) for other in files if other != name):
            message = "a caption file without an image of the same name; rename it or remove it"
            problems.append(Problem("caption-orphan", printable(name), message))
        wanting = [image for image in images if not merged.get(image)]
        try:
            texts = read_caption_text(directory / name, lines=lines) if wanting else ()
        except (ValueError, OSError) as error:
            problems.append(Problem("caption-unreadable", printable(name), one_line(str(error))))
            texts = ()
        merged.update(dict.fromkeys(wanting, texts))
    return merged


def _stem(name: str) -> str:
    return _composed(str(PurePosixPath(name).with_suffix("")))


def _caption_rank(name: str) -> tuple[str, int]:
    suffix = PurePosixPath(name).suffix.lower()
    return _stem(name), CAPTION_SUFFIXES.index(suffix) if suffix in CAPTION_SUFFIXES else -1


def _read_item(
    directory: Path,
    name: str,
    every_caption: Mapping[str, tuple[str, ...]],
    concept: Concept | None,
    decode: bool,
    problems: list[Problem],
) -> Item | None:
    try:
        name.encode("utf-8")
        facts = read_facts(directory / name, decode=decode)
    except UnicodeEncodeError:
        message = "the name is not UTF-8, so no manifest can hold it; rename the file"
        problems.append(Problem("name-not-utf8", printable(name), message, True))
        return None
    except BadImage as error:
        problems.append(Problem(error.code, printable(name), str(error), True))
        return None
    if not name.isprintable():
        message = "the name holds a control character, which many trainers cannot read; rename the file"
        problems.append(Problem("name-control-character", printable(name), message))
    captions = every_caption.get(name) or ((concept.words,) if concept else ())
    if not captions:
        none = "neither a row in a metadata file nor a .txt of the same name"
        message = f"no caption: {'its row or text file is empty or unreadable' if name in every_caption else none}"
        problems.append(Problem("caption-missing", printable(name), message))
    first, *rest = captions or ("",)
    repeats, words = (concept.repeats, concept.words) if concept else (1, "")
    return Item(directory / name, name, first, tuple(rest), facts, repeats, words)
