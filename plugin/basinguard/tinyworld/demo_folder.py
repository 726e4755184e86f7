"""The demo's image folder: captioned scenes as PNG files, two planted duplicates, held-out scenes kept aside."""

from __future__ import annotations

import json
import random
from pathlib import Path

from .scenes import Caption, all_captions, draw_scene

UNIQUE = 30  # images with a caption of their own
DUPLICATES = 2  # of them stored twice, under another name
HELDOUT = 16  # scenes with captions the model is never trained on


def write_demo_folder(directory: Path) -> tuple[Path, Path]:
    """Writes `train/` and `heldout/`, each an imagefolder with metadata.jsonl; what is there already stays.

    Returns:
        Both directories.
    """
    captions = random.Random(0).sample(all_captions(), UNIQUE + HELDOUT)
    names = [(caption, f"{str(caption).replace(' ', '-')}.png", seed) for seed, caption in enumerate(captions)]
    train = names[:UNIQUE] + [(c, f"copy of {name}", seed) for c, name, seed in names[:DUPLICATES]]
    return _write(directory / "train", train), _write(directory / "heldout", names[UNIQUE:])


def _write(directory: Path, rows: list[tuple[Caption, str, int]]) -> Path:
    metadata = directory / "metadata.jsonl"
    if metadata.exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    for caption, name, seed in rows:
        draw_scene(caption, seed).save(directory / name)
    lines = [json.dumps({"file_name": name, "text": str(caption)}) for caption, name, _ in rows]
    metadata.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory
