"""All of it in one call: read, compare, propose, write. The sources are read and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.text import one_line, printable
from .dataset_export import export_dataset
from .decisions import ALLOW_LIST, AllowList, read_allow_list
from .folder import Folder, Problem, read_folder
from .manifest import MANIFEST, Curation, find_manifest, read_manifest
from .output_files import OutputPlaces, write_outputs
from .report import next_command, summarize_curation
from .scan import Scan, scan_images
from .sources import read_folders, source_labels
from .trainer_settings import TrainerSettings

if TYPE_CHECKING:
    from .outliers import Scorer


@dataclass(frozen=True)
class Outcome:
    """What `curate` found and wrote.

    Attributes:
        curation: everything found and proposed, as in curation.json.
        written: files that were written, in order.
        failed: files that could not be written, one line each.
        command: what applies the proposals; "" for a dataset in memory.
    """

    curation: Curation
    written: tuple[Path, ...]
    failed: tuple[Problem, ...]
    command: str = ""

    @property
    def ok(self) -> bool:
        """Whether every file could be written; the exit status of the command says so too."""
        return not self.failed

    def __str__(self) -> str:
        tail = [f"wrote {path}" for path in self.written] + [f"NOT written: {problem}" for problem in self.failed]
        return "\n".join([summarize_curation(self.curation), "", *tail])


def curate_images(
    source: str | Path | Sequence[str | Path] | Any,
    *,
    out: Path | None = None,
    heldout: Path | None = None,
    allow_list: Path | None = None,
    apply: bool = False,
    trainer: TrainerSettings = TrainerSettings(),
    workers: int | None = None,
    scorer: Scorer | None = None,
    from_run: Path | None = None,
    select: int | None = None,
) -> Outcome:
    """Looks for what a fine-tune would memorize, and writes proposals beside the sources, never into them.

    Args:
        source, out, heldout, allow_list, apply, trainer, workers, from_run, select: as in `commands.curate`.
        scorer: a CLIP model that looks for captions which do not say what the image shows, such as
            `similarity.clip_score.ClipScore`; None leaves that out.

    Returns:
        An `Outcome`; printing it gives the summary for a terminal.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no image that can be used, or an argument out of range.
    """
    from . import analysis, run_evidence  # torch and scipy: the command line shows its help without them

    if select is not None and select < 1:
        raise ValueError(f"select={select}: expected how many images to keep, at least 1")
    directories, out = _places(source, out)
    given = read_allow_list(allow_list) if allow_list else AllowList()
    _make(out)
    remembered = out / ALLOW_LIST
    allow = (read_allow_list(remembered) if remembered.is_file() else AllowList()).joined(given)
    if not _is_folders(source):
        export_dataset(source, directories[0])
    folder = read_folders(directories)
    cache = out / "cache.sqlite"
    scan = _scan(folder, cache, workers)
    other = _scan(read_folder(Path(heldout), decode=False), cache, workers) if heldout else None
    evidence = None
    if from_run:
        evidence = run_evidence.read_run(Path(from_run), scan.items, scan.sha256, _orders(directories, scan))
    curation = analysis.analyse(
        scan, other, repeats=trainer.repeats, allow=allow, scorer=scorer, evidence=evidence, select=select
    )
    options = _options(heldout, from_run, select, trainer)
    places = OutputPlaces(tuple(directories), out, apply, options)
    written, failed = write_outputs(places, curation, folder, scan, allow, resolution=trainer.resolution)
    command = next_command(directories, out, *options) if _is_folders(source) else ""
    return Outcome(curation, tuple(written), tuple(failed), command)


def _options(
    heldout: Path | None, from_run: Path | None, select: int | None, trainer: TrainerSettings
) -> tuple[str, ...]:
    """Words of the command line that the next curation needs again, so that it proposes the same."""
    values = {"--heldout": heldout, "--from-run": from_run, "--select": select}
    usual = asdict(TrainerSettings())
    values |= {f"--trainer.{name}": value for name, value in asdict(trainer).items() if value != usual[name]}
    return tuple(word for name, value in values.items() if value is not None for word in (name, str(value)))


def _is_folders(source: Any) -> bool:
    """Whether a source is a folder, or a list of some; otherwise it is a dataset."""
    several = source if isinstance(source, list | tuple) else [source]
    return all(isinstance(each, str | Path) for each in several)


def _orders(directories: Sequence[Path], scan: Scan) -> Iterator[Sequence[str]]:
    """Hashes of the images in each order that they may have been trained in: captioned, all, or as a manifest says."""
    yield [digest for digest, item in zip(scan.sha256, scan.items, strict=True) if item.caption]
    yield scan.sha256
    for directory in directories:
        with suppress(FileNotFoundError, ValueError):  # none there, or one without hashes
            yield [row.image_sha256 for row in read_manifest(find_manifest(directory, MANIFEST))]


def _places(source: Any, out: Path | None) -> tuple[list[Path], Path]:
    """The folders of images, and where to write."""
    if _is_folders(source):
        directories = [Path(each) for each in (source if isinstance(source, list | tuple) else [source])]
        source_labels(directories)  # raises for none, and for one inside another
        for directory in directories:
            if not directory.is_dir():
                read_folder(directory)  # raises with the right words
        resolved = directories[0].resolve()
        return directories, Path(out) if out else resolved.with_name(resolved.name + "-curation")
    if out is None:
        raise ValueError("curate(dataset, out=None): a dataset has no folder of its own; say where to write with out=")
    return [Path(out) / "images"], Path(out)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{printable(str(out))}: cannot be made ({error.strerror}); say where to write with out="
        raise type(error)(error.errno, message) from None


def _scan(folder: Folder, cache: Path, workers: int | None) -> Scan:
    """The images of a folder, remembered in a cache; one that cannot be used costs time and a line, not the run."""
    problems = list(folder.problems)
    try:
        scan = scan_images(folder.items, cache=cache, workers=workers)
    except (OSError, ValueError, sqlite3.Error) as error:
        scan = scan_images(folder.items, workers=workers)
        message = f"not used, so the next run reads every image again ({one_line(str(error), 160)})"
        problems.append(Problem("cache-not-used", cache.name, message))
    if not scan.items:
        why = "; ".join(str(p) for p in (*folder.problems, *scan.problems)[:3]) or "it holds no images"
        raise ValueError(f"{printable(str(folder.directory))}: no image that can be used ({why})")
    return replace(scan, problems=(*problems, *scan.problems))
