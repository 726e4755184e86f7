"""Training images as a LightningDataModule: a captioned folder, or any Hugging Face dataset."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from basinguard.training.augmentation import Relief, draw_caption, vocabulary_of

from ..core.seeds import stream
from .buckets import BucketBatches, Shape, nearest, shapes
from .data_sources import DatasetSource, FolderSource, Named, Source, fitted
from .sampler import MARK, EpochOrder, ResumableLoader


class ImageFolder(LightningDataModule):
    """Captioned images, resized and cropped: square, or each to the nearest of a few shapes.

    Batches are {"pixel_values": [B, 3, H, W] in -1..1, "caption": B texts, "index": [B]}, and "embedding_noise" [B]
    where relief asks for it. Their order, crops and flips
    depend on `seed` and the epoch alone, whatever `num_workers` is, and resume where a checkpoint left them.

    Args:
        directory: a folder with metadata.jsonl, .csv or .parquet (columns file_name and text), or images with a .txt
            of the same name beside each.
        dataset: instead of a directory: a Hugging Face dataset, by hub id, folder, or `save_to_disk` folder.
        resolution: side of the squares the model is trained on, in pixels.
        batch_size: images in a batch.
        crop: "centre", or "random" for a new place each epoch.
        flip: mirror half of the images each epoch. Mirrored copies are then memorized too; the guard finds both.
        buckets: keep proportions: crop each image to the nearest of a few shapes of at most `resolution` squared
            pixels; a batch holds one shape. Probes stay square.
        bucket_step: the shapes' sides are multiples of it, in pixels.
        resolutions: further sides; the epochs take turns at `resolution` and these.
        num_workers: processes that read images; 0 reads in the training process.
        seed: of order, crops and flips.
        skip_bad: leave out images that cannot be used, with a warning, instead of refusing to start.
        long_captions: "refuse" a caption with more tokens than the model takes, or "truncate" it with a warning.
        keep_in_memory: decode each image once and keep its pixels (3 * resolution^2 bytes each, in every worker).
        subset: of the Hugging Face dataset (its configuration).
        split: of the Hugging Face dataset.
        image_column: of the Hugging Face dataset.
        caption_column: of the Hugging Face dataset.
        relief: what is done to captions and repeats while training, see `basinguard.curation.relief`; or a function
            that is called on each caption whenever it is trained on and returns the caption to use.
        manifest: name of a curated manifest in `directory`, such as metadata.curated.jsonl: only its images are
            trained on, with its captions and repeats.

    Example:
        >>> images = ImageFolder("photos", resolution=512, batch_size=4)              # doctest: +SKIP
        >>> images.items[0], images.pixels(0).shape                                   # doctest: +SKIP
        (('photos/cat.png', 'a cat on a sofa'), torch.Size([3, 512, 512]))
    """

    def __init__(
        self,
        directory: str | None = None,
        dataset: str | None = None,
        resolution: int = 512,
        batch_size: int = 4,
        crop: Literal["centre", "random"] = "centre",
        flip: bool = False,
        buckets: bool = False,
        bucket_step: int = 64,
        resolutions: list[int] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        skip_bad: bool = False,
        long_captions: Literal["refuse", "truncate"] = "refuse",
        keep_in_memory: bool = False,
        subset: str | None = None,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        relief: Relief | Callable[[str], str] | None = None,
        manifest: str | None = None,
    ) -> None:
        super().__init__()
        if min(resolution, bucket_step, *(resolutions or [8])) < 8 or batch_size < 1 or num_workers < 0:
            given = f"resolution={resolution}, batch_size={batch_size}, num_workers={num_workers}"
            more = f", bucket_step={bucket_step}, resolutions={resolutions}" if buckets or resolutions else ""
            raise ValueError(f"ImageFolder: {given}{more}; expected at least 8, 1 and 0{', 8 and 8' * bool(more)}")
        self.directory, self.dataset, self.resolution, self.batch_size = directory, dataset, resolution, batch_size
        self.buckets, self.bucket_step, self.resolutions = buckets, bucket_step, (resolution, *(resolutions or ()))
        self.crop, self.flip, self.num_workers, self.seed = crop, flip, num_workers, seed
        self.skip_bad, self.long_captions, self.keep_in_memory = skip_bad, long_captions, keep_in_memory
        self.subset, self.split = subset, split
        self.image_column, self.caption_column, self.relief = image_column, caption_column, relief
        self.manifest = manifest
        self._order: EpochOrder | None = None
        self._rest: dict[int, float] = {}
        self._vary: frozenset[int] = frozenset()

    @cached_property
    def source(self) -> Source:
        """Where the images come from; read once. Its `problems` say why it cannot be used."""
        if (self.directory is None) == (self.dataset is None):
            given = f"directory={self.directory!r}, dataset={self.dataset!r}"
            return FolderSource((), (f"{given}; give exactly one of them",), ())
        if self.directory is not None:
            return FolderSource.read(self.directory, skip_bad=self.skip_bad, manifest=self.manifest)
        return DatasetSource.read(
            str(self.dataset),
            subset=self.subset,
            split=self.split,
            image_column=self.image_column,
            caption_column=self.caption_column,
        )

    @property
    def items(self) -> tuple[Named, ...]:
        """(path or label, caption) of every image; a batch's "index" points here."""
        return self.source.items

    @property
    def augments(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return self.flip or self.crop == "random" or len(self.resolutions) > 1

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Width and height that each image is cropped to at `resolution`; reads every image's size for buckets."""
        square = (self.resolution, self.resolution)
        if not self.buckets:
            return (square,) * len(self.items)
        choice = shapes(self.resolution, self.bucket_step)
        return tuple(choice[nearest(self.source.open(k).size, choice)] for k in range(len(self.items)))

    def pixels(self, index: int) -> Tensor:
        """One training image as the model sees it without augmentation, [3, H, W] in 0..1."""
        return fitted(self.source.open(index), self.resolution)

    def all_pixels(self) -> Tensor:
        """Every training image, [N, 3, H, W] in 0..1, in the order of `items`."""
        return torch.stack([self.pixels(index) for index in range(len(self.items))])

    def setup(self, stage: str) -> None:
        """Reads the set and refuses one with problems.

        Raises:
            ValueError: lists every problem.
        """
        if self.source.problems:
            lines = "\n".join(f"- {problem}" for problem in self.source.problems)
            raise ValueError(f"the training images cannot be used:\n{lines}")
        for oddity in self.source.oddities:
            rank_zero_warn(oddity)

    def act_on(self, rest: Mapping[int, float], vary: Collection[int]) -> None:
        """Treats some images otherwise from the next epoch on; both empty: all as before.

        Args:
            rest: share of its turns, in [0, 1), that an image keeps; others are shown more often instead.
            vary: images that get one of all their captions, drawn each time.

        Raises:
            ValueError: `rest` with buckets, whose batches cannot be refilled.
        """
        if rest and self.buckets:
            raise ValueError(f"ImageFolder(buckets=True): {len(rest)} images cannot rest; train without buckets")
        self._rest, self._vary = dict(rest), frozenset(vary)
        if self._order is not None:
            self._tell(self._order)

    def _tell(self, order: EpochOrder) -> None:
        shown = enumerate(self._shown)
        order.rest = {at: self._rest[index] for at, index in shown if index in self._rest}
        order.marked = frozenset(at for at, index in enumerate(self._shown) if index in self._vary)

    def train_dataloader(self) -> DataLoader:
        """One epoch of shuffled batches; the last one may be smaller."""
        pictures = Pictures(self)
        order = EpochOrder(len(pictures), self.seed)
        self._order, self._shown = order, pictures.shown
        self._tell(order)
        taken: dict[str, Any] = {"batch_size": self.batch_size, "sampler": order}
        if self.buckets:
            choice = sorted(set(self.shapes))
            bucket = [choice.index(self.shapes[index]) for index in pictures.shown]
            taken = {"batch_sampler": BucketBatches(order, bucket, self.batch_size)}
        loader = ResumableLoader(
            pictures,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **taken,
        )
        loader.trainer = self.trainer
        return loader


class Pictures(Dataset[dict[str, Any]]):
    """Training examples of an `ImageFolder`, addressed by epoch * count + index (see `EpochOrder`)."""

    def __init__(self, images: ImageFolder) -> None:
        self.source, self.shapes = images.source, images.shapes
        self.resolutions = images.resolutions
        self.choice = {side: shapes(side, images.bucket_step) for side in self.resolutions} if images.buckets else {}
        self.random_crop, self.flip, self.seed = images.crop == "random", images.flip, images.seed
        self.relief = images.relief
        repeats: Sequence[int] = self.source.repeats
        if isinstance(self.relief, Relief):
            repeats = self.relief.repeats(repeats)
            self.vocabulary = vocabulary_of([text for texts in self.source.captions for text in texts])
        self.shown = [index for index, count in enumerate(repeats) for _ in range(count)]
        self.kept: dict[int, Tensor] | None = {} if self._keeps(images) else None

    def _keeps(self, images: ImageFolder) -> bool:
        return images.keep_in_memory and not self.random_crop and len(self.resolutions) == 1

    def __len__(self) -> int:
        return len(self.shown)

    def __getitem__(self, key: int) -> dict[str, Any]:
        varied, key = key >= MARK, key % MARK  # told by the key, because a worker has a copy of this data set
        index = self.shown[key % len(self)]
        generator = torch.Generator().manual_seed(stream(self.seed, key))
        pixels = self._pixels(index, key // len(self), generator)
        if self.flip and torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        example = {"pixel_values": pixels * 2 - 1, "caption": self._caption(index, key, varied), "index": index}
        if isinstance(self.relief, Relief) and self.relief.noise:
            example["embedding_noise"] = self.relief.noise
        return example

    def _caption(self, index: int, key: int, varied: bool) -> str:
        caption = self.source.items[index][1]
        if varied:
            caption = draw_caption(self.source.captions[index], random.Random(stream(self.seed, key)))
        if isinstance(self.relief, Relief):
            rng = random.Random(stream(self.seed, key))
            return self.relief.caption([caption] if varied else self.source.captions[index], self.vocabulary, rng)
        return caption if self.relief is None else self.relief(caption)

    def _pixels(self, index: int, epoch: int, generator: torch.Generator) -> Tensor:
        side = self.resolutions[epoch % len(self.resolutions)]
        choice = self.choice.get(side, ((side, side),))
        size = choice[nearest(self.shapes[index], choice)]
        if self.kept is None:
            return fitted(self.source.open(index), size, generator=generator if self.random_crop else None)
        if index not in self.kept:
            self.kept[index] = (fitted(self.source.open(index), size) * 255).round().to(torch.uint8)
        return self.kept[index].float() / 255
