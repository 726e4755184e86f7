"""Everything that a curation leaves on disk, each file on its own: one that cannot be written costs no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.files import write_bytes
from ..core.text import one_line, printable
from .decisions import ALLOW_LIST, AllowList, Decision
from .embedding_map import map_points
from .folder import Folder, Item, Problem
from .manifest import MANIFEST, Curation, manifest_lines
from .report import PageContext, next_command, render_report
from .scan import Scan
from .sources import source_labels
from .trainer_configs import trainer_files
from .trainer_folders import TrainerFolders, make_folders, plan_folders

Maker = tuple[Path, Callable[[], dict[str, bytes]]]  # where to, and what makes the files that go there


@dataclass(frozen=True)
class OutputPlaces:
    """Where a curation read and where it writes.

    Attributes:
        sources: folders of images.
        out: folder for everything that is written.
        apply: the manifest goes into the folders of images, where trainers look for it.
        options: words of the command line that the next curation needs again.
    """

    sources: tuple[Path, ...]
    out: Path
    apply: bool
    options: tuple[str, ...] = ()


def write_outputs(
    places: OutputPlaces, curation: Curation, folder: Folder, scan: Scan, allow: AllowList, *, resolution: int
) -> tuple[list[Path], list[Problem]]:
    """Writes page, manifest, trainers' configs and folders; what was written, and one line for each file that was not.

    Args:
        places: where to.
        curation: what was found and proposed.
        folder, scan: what was read.
        allow: decisions of this run and earlier ones.
        resolution: for the trainers' configs, in pixels.
    """
    folders = plan_folders(places.out, folder, curation.decisions, scan.items)
    written, failed = _write(_makers(places, curation, scan, allow, folders, resolution))
    try:
        make_folders(folders)
    except OSError as error:
        failed.append(_not_written(folders.root, error))
    return written, failed


def _makers(
    places: OutputPlaces, curation: Curation, scan: Scan, allow: AllowList, folders: TrainerFolders, resolution: int
) -> list[Maker]:
    paths = {item.file_name: item.path for item in scan.items}
    title = ", ".join(source.resolve().name for source in places.sources)
    command = next_command(places.sources, places.out, *places.options, "--allow-list", ALLOW_LIST)
    points = map_points(curation.decisions, curation.positions, scan.thumbs, scan.aspects)
    page = PageContext(title, command, applied=places.apply, points=tuple(points))
    return [
        (places.out, lambda: {"curation.json": (curation.to_json() + "\n").encode()}),
        *_manifests(places, curation.decisions, scan.items),
        (places.out, lambda: {ALLOW_LIST: (allow.to_json() + "\n").encode()} if allow != AllowList() else {}),
        (places.out, lambda: trainer_files(folders, resolution=resolution)),
        (places.out, lambda: {"report.html": render_report(curation, paths, page).encode()}),
    ]


def _manifests(places: OutputPlaces, decisions: Sequence[Decision], items: Sequence[Item]) -> Iterator[Maker]:
    """One of all images; of several folders, when applied, one into each by the names that its images have there."""
    if not places.apply or len(places.sources) == 1:
        yield places.sources[0] if places.apply else places.out, partial(_manifest, decisions, items)
        return
    for source, label in zip(places.sources, source_labels(places.sources), strict=True):
        begin = f"{label}/"
        inside = [
            each.model_copy(update={"file_name": each.file_name.removeprefix(begin)})
            for each in decisions
            if each.file_name.startswith(begin)
        ]
        own = [
            replace(each, file_name=each.file_name.removeprefix(begin))
            for each in items
            if each.file_name.startswith(begin)
        ]
        yield source, partial(_manifest, inside, own)


def _manifest(decisions: Sequence[Decision], items: Sequence[Item]) -> dict[str, bytes]:
    return {MANIFEST: manifest_lines(decisions, items)}


def _write(makers: Sequence[Maker]) -> tuple[list[Path], list[Problem]]:
    written, failed = [], []
    for folder, make in makers:
        for file_name, content in make().items():
            path = folder / file_name
            try:
                write_bytes(path, content)
                written.append(path)
            except OSError as error:
                failed.append(_not_written(path, error))
    return written, failed


def _not_written(path: Path, error: OSError) -> Problem:
    return Problem(
        "not-written", printable(str(path)), f"{error.strerror or one_line(str(error), 160)}; free space or change out="
    )
