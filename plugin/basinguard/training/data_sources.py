"""Where training images come from: a captioned folder, or a Hugging Face dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.files import file_sha256
from ..core.images import load_rgb, to_rgb
from ..core.text import one_line, printable
from ..curation.dataset_export import encoded, undecoded
from ..curation.folder import Folder, Problem, read_folder
from ..curation.manifest import MANIFEST, ManifestRow, check_rows, find_manifest, read_manifest
from .cropping import fitted
from .finetune_options import HubDataset
from .pixel_checks import require_unit_pixels

REFUSED = frozenset(
    {"caption-missing", "caption-unreadable", "caption-too-long", "metadata-unreadable", "row-unusable"}
)
Named = tuple[str, str]
Picture = str | Path | Image.Image
Used = tuple[Path, tuple[str, ...], int]  # file, captions, repeats


@dataclass(frozen=True)
class ImageSource:
    """A captioned set of images in a fixed order.

    Attributes:
        items: (path or label, caption) of each image.
        problems: what is wrong, one line each, that training should not start with.
        oddities: what is worth a warning, one line each.
        captions: all captions of each image, the one of `items` first.
        repeats: how often an epoch shows each image.
        read: the file or the bytes of an image by its index.
        protected: how many images, the first ones, must not come back; all where None.
        canaries: marked pictures; those that are planted are the last of `items`.
    """

    items: tuple[Named, ...] = ()
    problems: tuple[str, ...] = ()
    oddities: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()
    repeats: tuple[int, ...] = ()
    read: Callable[[int], Path | bytes] = field(default=lambda index: Path(), repr=False)
    protected: int | None = None
    canaries: tuple[Any, ...] = ()

    @property
    def secrets(self) -> int:
        """How many images, the first ones, must not come back; those after them are class pictures."""
        return len(self.items) if self.protected is None else self.protected

    def with_class_pictures(self, others: ImageSource) -> ImageSource:
        """The same, and behind it images that are trained on but may come back: class pictures, and canaries."""
        first = len(self.items)
        return ImageSource(
            items=self.items + others.items,
            problems=self.problems + tuple(f"class pictures: {problem}" for problem in others.problems),
            oddities=self.oddities + others.oddities,
            captions=self.captions + others.captions,
            repeats=self.repeats + others.repeats,
            read=lambda index: self.read(index) if index < first else others.read(index - first),
            protected=self.secrets,
        )

    def open(self, index: int) -> Image.Image:
        """The image, upright, in RGB."""
        return load_rgb(self.read(index))

    def sha256(self, index: int) -> str:
        """Content hash of the file, or of the bytes in a dataset's row."""
        content = self.read(index)
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)

    @classmethod
    def of_folder(
        cls,
        directory: str | Path,
        *,
        skip_bad: bool = False,
        manifest: str | None = None,
        caption: str | None = None,
        lines: bool = False,
    ) -> ImageSource:
        """Images of a captioned folder, ordered by file name; see `basinguard.curation.folder`.

        Args:
            directory: the folder.
            skip_bad: leave out what cannot be used, with a warning, instead of refusing it.
            manifest: name of a curated manifest in it, or its path: only its rows are used, with its captions and
                repeats, and only while image and caption are what they were when it was written.
            caption: of every image that has none of its own.
            lines: see `finetune_options.ReadingOptions`.
        """
        try:
            folder = read_folder(Path(directory).expanduser(), lines=lines)
            rows = read_manifest(find_manifest(folder.directory, manifest)) if manifest else None
        except (OSError, ValueError) as error:
            return cls(problems=(f"directory: {error}",))
        if rows is None:
            problems = [p for p in folder.problems if not (caption and p.code == "caption-missing")]
            bad, odd = [str(p) for p in problems if _refused(p)], [str(p) for p in problems if not _refused(p)]
            every = [(item, item.captions if item.caption else (caption or "",)) for item in folder.items]
            used = [(item.path, captions, item.repeats) for item, captions in every if captions[0]]
        else:  # what it leaves out was told when it was written
            used, reasons = _of_manifest(folder, rows, caption or "")
            bad, odd = [f"{manifest}: {reason}" for reason in reasons], []
        if not used:
            bad.append(
                f"{directory}: no captioned image; add images, each named in metadata.jsonl or with a .txt, or give "
                "one caption for all"
            )
        if bad and not manifest and (folder.directory / MANIFEST).is_file():
            bad.append(
                f"a manifest lies there: with --manifest {MANIFEST} (fit: --data.init_args.manifest) nothing is read "
                "that it does not name"
            )
        skips = skip_bad and bool(used)
        return cls(
            items=tuple((str(path), captions[0]) for path, captions, _ in used),
            problems=() if skips else tuple(bad),
            oddities=(*odd, *(bad if skips else ())),
            captions=tuple(captions for _, captions, _ in used),
            repeats=tuple(repeats for _, _, repeats in used),
            read=[path for path, _, _ in used].__getitem__,
        )

    @classmethod
    def of_dataset(cls, dataset: HubDataset) -> ImageSource:
        """Rows of a hub id, of a directory with data files, or of what `Dataset.save_to_disk` wrote."""
        name, column = dataset.name, dataset.caption_column
        try:
            rows = _load_rows(dataset)
        except Exception as error:  # a loader of foreign formats raises almost anything
            why = f"{type(error).__name__}: {one_line(str(error), 300)}"
            return cls(problems=(f"dataset {name!r} cannot be loaded ({why}); give another, or connect to fetch it",))
        missing = [each for each in (dataset.image_column, column) if each not in rows.column_names]
        if missing:
            columns = f"{missing}; it has {rows.column_names}"
            return cls(problems=(f"dataset {name!r} has no column {columns}: set image_column and caption_column",))
        captions = [text.strip() if isinstance(text, str) else "" for text in rows[column]]
        items = tuple((f"{name}[{index}]", text) for index, text in enumerate(captions))
        bad = tuple(f"{label}: no caption in column {column!r}" for label, text in items if not text)
        return cls(
            items=items,
            problems=bad if items else (f"dataset {name!r}, split {dataset.split!r}: no rows",),
            captions=tuple((text,) for text in captions),
            repeats=(1,) * len(items),
            read=partial(_stored, undecoded(rows, dataset.image_column), dataset.image_column),
        )


def _of_manifest(folder: Folder, rows: Sequence[ManifestRow], caption: str) -> tuple[list[Used], list[str]]:
    """What a manifest says to train on, and why some of its rows cannot be used; `caption` is for rows without one."""
    paths = {item.file_name: item.path for item in folder.items}
    used, bad = [], []
    for row, reason in zip(rows, check_rows(rows, folder), strict=True):
        captions = row.captions if row.captions[0] else (caption,)
        if not reason and not captions[0]:
            reason = f"{printable(row.file_name)}: no caption; write one and curate again"
        if reason:
            bad.append(reason)
        else:
            used.append((paths[row.file_name], captions, row.repeats))
    return used, bad


def _stored(rows: Any, column: str, index: int) -> bytes:
    return encoded(rows[index][column])


def _load_rows(dataset: HubDataset) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    directory = Path(dataset.name).expanduser()
    if (directory / "state.json").is_file() or (directory / "dataset_dict.json").is_file():
        stored = load_from_disk(str(directory))
        return stored[dataset.split] if isinstance(stored, DatasetDict) else stored
    return load_dataset(dataset.name, dataset.subset, split=dataset.split)


def _refused(problem: Problem) -> bool:
    return problem.skipped or problem.code in REFUSED


def image_hashes(images: Sequence[Picture] | Tensor) -> tuple[str, ...]:
    """Content hashes of pictures that are files; none where some are not."""
    if isinstance(images, Tensor) or any(isinstance(each, Image.Image) for each in images):
        return ()
    return tuple(file_sha256(Path(str(each))) for each in images)


def pixels_of(images: Sequence[Picture] | Tensor, side: int) -> Tensor:
    """Pictures as the guard compares them, [N, 3, H, W] in 0..1; those that are no pixels yet are cropped to `side`.

    Raises:
        ValueError: pixels outside 0..1.
    """
    if not isinstance(images, Tensor):
        opened = (to_rgb(each) if isinstance(each, Image.Image) else load_rgb(Path(each)) for each in images)
        return torch.stack([fitted(image, side) for image in opened])
    require_unit_pixels(images)
    return images.float()
