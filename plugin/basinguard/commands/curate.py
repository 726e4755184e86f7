"""`basinguard curate DIR`: what a fine-tune would memorize, found before it is trained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..curation.trainer_settings import TrainerSettings

if TYPE_CHECKING:
    from ..curation.curate import Outcome

SEVERAL = "source"  # words before the first option, all of them
NAMED = 5  # files without a caption that a line names


def curate(
    source: str | Path | Sequence[str | Path] | Any,
    out: Path | None = None,
    heldout: Path | None = None,
    allow_list: Path | None = None,
    apply: bool = False,
    trainer: TrainerSettings = TrainerSettings(),
    workers: int | None = None,
    from_run: Path | None = None,
    select: int | None = None,
) -> Outcome:
    """Looks for what a fine-tune would memorize, and writes proposals beside the images, never into them.

    It takes no copy detector: a threshold would drop look-alikes. What it calls one picture agrees at full resolution.

    Args:
        source: a folder of images with captions, or several, compared with each other (`curate DIR DIR`, a list in
            Python); in Python also a `datasets` dataset with an image column.
        out: folder for the report, curation.json, trainer configs and cache; beside the first folder by default.
        heldout: a folder of held-out images; pictures in both are leaks.
        allow_list: refusals of earlier runs, as the report downloads them.
        apply: also write metadata.curated.jsonl into the image folder; without it this is a dry run.
        trainer: how the set will be trained, for the trainer configs.
        workers: processes that read images; all cores by default.
        from_run: what a run on these images left: its log directory with guard.json, its export, or an audit of the
            model; acts on what it memorized. Images are found by their content, whatever they are called now.
        select: keep so many images, the most diverse ones that show the concept, and propose to leave out the rest.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no image that can be used, or an argument out of range.
    """
    from ..curation.curate import curate_images

    return curate_images(
        source,
        out=out,
        heldout=heldout,
        allow_list=allow_list,
        apply=apply,
        trainer=trainer,
        workers=workers,
        from_run=from_run,
        select=select,
    )


def show(outcome: Outcome, arguments: dict[str, Any]) -> None:
    """Prints what was found, and what to do next: look, decide, train on what stays."""
    from ..core.text import printable
    from ..curation.manifest import MANIFEST

    given = arguments["source"]
    folders = [shlex.quote(str(folder)) for folder in (given if isinstance(given, list | tuple) else [given])]
    print(outcome)
    bare = [row.file_name for row in outcome.curation.decisions if row.repeats and not any(row.captions)]
    if bare:
        more = f" and {len(bare) - NAMED} more" if len(bare) > NAMED else ""
        names = ", ".join(map(printable, bare[:NAMED]))
        print(f"\nwithout a caption, which training refuses, {len(bare)} that stay: {names}{more};")
        print("write one into a .txt of the same name, or move them away, and curate again")
    if not arguments["apply"]:
        print(f"\nnothing has changed; look at report.html, then: {outcome.command}")
    if len(folders) == 1 and outcome.ok:
        words = f"--config sd21_lora --data.init_args.directory {folders[0]} --data.init_args.manifest {MANIFEST}"
        print(f"train on what stays: basinguard fit {words}")
