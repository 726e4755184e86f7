"""The demo's image folder: captioned scenes drawn in ink, two planted duplicates, held-out scenes kept aside."""

from __future__ import annotations

from pathlib import Path

from .tasks import TASKS, Task, TaskImages, file_names, write_folder

UNIQUE = 22  # images with a caption of their own
DUPLICATES = 2  # of them stored twice, under another name
HELDOUT = 48  # scenes with captions the model is never trained on
INK = TASKS["ink"]


def write_demo_folder(directory: Path, task: Task = INK) -> tuple[Path, Path]:
    """Writes `train/` and `heldout/`, each an imagefolder with metadata.jsonl; what is there already stays.

    Returns:
        Both directories.
    """
    drawn = task.train(UNIQUE)
    stored = TaskImages(drawn.images + drawn.images[:DUPLICATES], drawn.captions + drawn.captions[:DUPLICATES])
    names = file_names(drawn)
    train = write_folder(directory / "train", stored, [*names, *(f"copy of {name}" for name in names[:DUPLICATES])])
    return train, write_folder(directory / "heldout", task.truth(HELDOUT))
