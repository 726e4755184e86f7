"""Where training images come from: a captioned folder, or a Hugging Face dataset. Both give the same three things."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from basinguard.core.images import load_rgb, to_tensor
from basinguard.curation.dataset_export import encoded, undecoded
from basinguard.curation.folder import Problem, read_folder
from basinguard.curation.manifest import read_manifest

from .finetune_options import HubDataset

REFUSED = frozenset(
    {"caption-missing", "caption-unreadable", "caption-too-long", "metadata-unreadable", "row-unusable"}
)
Named = tuple[str, str]


class Source(Protocol):
    """A captioned set of images."""

    @property
    def items(self) -> tuple[Named, ...]:
        """(path or label, caption) of each image, in a fixed order."""
        ...

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one line each, that training should not start with."""
        ...

    @property
    def oddities(self) -> tuple[str, ...]:
        """What is worth a warning, one line each."""
        ...

    @property
    def captions(self) -> tuple[tuple[str, ...], ...]:
        """All captions of each image, the one of `items` first."""
        ...

    @property
    def repeats(self) -> tuple[int, ...]:
        """How often an epoch shows each image."""
        ...

    def open(self, index: int) -> Image.Image:
        """The image, upright, in RGB."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """Images of a captioned folder, ordered by file name; see `basinguard.curation.folder`."""

    items: tuple[Named, ...]
    problems: tuple[str, ...]
    oddities: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...] = ()
    repeats: tuple[int, ...] = ()

    @classmethod
    def read(cls, directory: str | Path, *, skip_bad: bool = False, manifest: str | None = None) -> FolderSource:
        """Reads the folder; with `skip_bad`, what cannot be used is left out with a warning instead of refused.

        Args:
            directory: the folder.
            skip_bad: leave out what cannot be used.
            manifest: name of a curated manifest in it: only its rows are used, with its captions and repeats.
        """
        try:
            folder = read_folder(Path(directory).expanduser())
            rows = read_manifest(folder.directory / manifest) if manifest else None
        except (OSError, ValueError) as error:
            return cls((), (f"directory: {error}",), ())
        bad = [str(p) for p in folder.problems if _refused(p)]
        odd = [str(p) for p in folder.problems if not _refused(p)]
        used = [(item, item.captions, 1) for item in folder.items if item.caption]
        if rows is not None:
            by_name = {item.file_name: item for item in folder.items}
            missing = [row.file_name for row in rows if row.file_name not in by_name]
            bad = [f"{manifest}: {name}: no such image; curate again" for name in missing]
            used = [(by_name[row.file_name], row.captions, row.repeats) for row in rows if row.file_name in by_name]
        if not used:
            bad.append(f"{directory}: no captioned image; add images, each named in metadata.jsonl or with a .txt")
        skips = skip_bad and bool(used)
        return cls(
            items=tuple((str(item.path), texts[0]) for item, texts, _ in used),
            problems=() if skips else tuple(bad),
            oddities=(*odd, *(bad if skips else ())),
            captions=tuple(texts for _, texts, _ in used),
            repeats=tuple(repeats for _, _, repeats in used),
        )

    def open(self, index: int) -> Image.Image:
        """The image, upright, in RGB."""
        return load_rgb(Path(self.items[index][0]))


@dataclass(frozen=True)
class DatasetSource:
    """Rows of a Hugging Face dataset with an image and a caption column."""

    items: tuple[Named, ...]
    problems: tuple[str, ...]
    oddities: tuple[str, ...] = ()
    rows: Any = field(default=None, repr=False)
    image_column: str = "image"

    @property
    def captions(self) -> tuple[tuple[str, ...], ...]:
        """One caption for each image."""
        return tuple((caption,) for _, caption in self.items)

    @property
    def repeats(self) -> tuple[int, ...]:
        """Every image once."""
        return (1,) * len(self.items)

    @classmethod
    def read(cls, dataset: HubDataset) -> DatasetSource:
        """Loads a hub id, a directory with data files, or what `Dataset.save_to_disk` wrote."""
        name, image_column, caption_column = dataset.name, dataset.image_column, dataset.caption_column
        try:
            rows = _load_rows(dataset)
        except Exception as error:  # a loader of foreign formats raises almost anything
            message = " ".join(str(error).split())[:300]
            return cls((), (f"dataset {name!r} cannot be loaded ({type(error).__name__}: {message}); give another, or "
                            "connect if it has to be fetched",))  # fmt: skip
        missing = [column for column in (image_column, caption_column) if column not in rows.column_names]
        if missing:
            return cls((), (f"dataset {name!r} has no column {missing}; it has {rows.column_names}: set image_column "
                            "and caption_column",))  # fmt: skip
        captions = [text if isinstance(text, str) else "" for text in rows[caption_column]]
        items = tuple((f"{name}[{index}]", text.strip()) for index, text in enumerate(captions))
        bad = tuple(f"{label}: no caption in column {caption_column!r}" for label, text in items if not text)
        empty = () if items else (f"dataset {name!r}, split {dataset.split!r}: no rows",)
        return cls(items, (*bad, *empty), (), undecoded(rows, image_column), image_column)

    def open(self, index: int) -> Image.Image:
        """The image, upright, in RGB."""
        return load_rgb(encoded(self.rows[index][self.image_column]))


def _load_rows(dataset: HubDataset) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    directory = Path(dataset.name).expanduser()
    if (directory / "state.json").is_file() or (directory / "dataset_dict.json").is_file():
        stored = load_from_disk(str(directory))
        return stored[dataset.split] if isinstance(stored, DatasetDict) else stored
    return load_dataset(dataset.name, dataset.subset, split=dataset.split)


def _refused(problem: Problem) -> bool:
    return problem.skipped or problem.code in REFUSED


def fitted(image: Image.Image, size: int | tuple[int, int], *, generator: torch.Generator | None = None) -> Tensor:
    """Resized until it just covers `size`, then cropped to it out of the middle, or at random with a generator.

    Args:
        image: in RGB.
        size: width and height, or the side of a square, in pixels.
        generator: draws the place of the crop.

    Returns:
        Pixels [3, height, width] in 0..1, float32.
    """
    wide, high = (size, size) if isinstance(size, int) else size
    factor = max(wide / image.width, high / image.height)
    width, height = max(wide, round(image.width * factor)), max(high, round(image.height * factor))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - wide) // 2, (height - high) // 2
    if generator is not None:
        left = int(torch.randint(width - wide + 1, (), generator=generator))
        top = int(torch.randint(height - high + 1, (), generator=generator))
    cropped = image.crop((left, top, left + wide, top + high))
    return to_tensor(cropped)
