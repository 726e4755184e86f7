"""Training images as a LightningDataModule: a captioned folder, or any Hugging Face dataset."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from .buckets import BucketBatches, Shape, nearest_bucket, shapes
from .canary_images import Canary, canary_source, draw_canaries
from .caption_augmentation import CaptionAugmentation
from .cropping import fitted
from .data_sources import ImageSource, Named
from .epoch_order import EpochOrder, ResumableLoader
from .finetune_options import FramingOptions, HubDataset, ReadingOptions, as_options
from .pictures import Pictures


class ImageFolder(LightningDataModule):
    """Captioned images, resized and cropped: square, or each to the nearest of a few shapes.

    Batches are {"pixel_values": [B, 3, H, W] in -1..1, "caption": B texts, "index": [B], "sizes": [B, 6] (see
    `cropping.Crop.sizes`)}, and "embedding_noise" [B] where the caption augmentation asks for it. Their order, crops
    and flips depend on `seed` and the epoch alone, whatever `num_workers` is, and resume where a checkpoint left them.

    Args:
        directory: a folder with metadata.jsonl, .csv or .parquet (columns file_name and text), or images with a .txt
            of the same name beside each.
        dataset: instead of a directory: a Hugging Face dataset.
        manifest: name of a curated manifest in `directory`, such as metadata.curated.jsonl: only its images are
            trained on, with its captions and repeats.
        resolution: side of the squares the model is trained on, in pixels.
        framing: crop, flip, and shapes beside the square.
        reading: a caption for images without one; what is kept in memory, left out or cut.
        caption_augmentation: what is done to captions and repeats while training; or a function that is called on each
            caption whenever it is trained on and returns the caption to use.
        batch_size: images in a batch.
        num_workers: processes that read images; 0 reads in the training process.
        seed: of order, crops and flips.

    Example:
        >>> images = ImageFolder("photos", resolution=512, batch_size=4)              # doctest: +SKIP
        >>> images.items[0], images.pixels(0).shape                                   # doctest: +SKIP
        (('photos/cat.png', 'a cat on a sofa'), torch.Size([3, 512, 512]))
    """

    def __init__(
        self,
        directory: str | None = None,
        dataset: HubDataset | None = None,
        manifest: str | None = None,
        resolution: int = 512,
        framing: FramingOptions = FramingOptions(),
        reading: ReadingOptions = ReadingOptions(),
        caption_augmentation: CaptionAugmentation | Callable[[str], str] | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.directory, self.dataset, self.manifest = directory, as_options(HubDataset, dataset), manifest
        self.resolution, self.framing = resolution, as_options(FramingOptions, framing)
        self.reading = as_options(ReadingOptions, reading)
        self.caption_augmentation = as_options(CaptionAugmentation, caption_augmentation)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._require_ranges()
        self._order: EpochOrder | None = None
        self._shares: dict[int, float] = {}
        self._varied: frozenset[int] = frozenset()

    def _require_ranges(self) -> None:
        multiple, further = self.framing.bucket_step, self.framing.resolutions
        if min(self.resolution, multiple, *(further or [8])) < 8 or self.batch_size < 1 or self.num_workers < 0:
            numbers = f"resolution={self.resolution}, batch_size={self.batch_size}, num_workers={self.num_workers}"
            more = self.framing.buckets or further
            sides = f", bucket_step={multiple}, resolutions={list(further)}" if more else ""
            accepted = f"at least 8, 1 and 0{', 8 and 8' if more else ''}"
            raise ValueError(f"ImageFolder: {numbers}{sides}; expected {accepted}")

    @property
    def arguments(self) -> str:
        """How the other commands are told of these images, quoted for a shell: the folder, and the manifest if any."""
        if self.directory is None:
            return "DATA"
        named = [self.directory, *(["--manifest", self.manifest] if self.manifest else [])]
        return shlex.join(map(str, named))

    @cached_property
    def source(self) -> ImageSource:
        """Where the images come from; read once. Its `problems` say why it cannot be used."""
        if (self.directory is None) == (self.dataset is None):
            arguments = f"directory={self.directory!r}, dataset={self.dataset!r}"
            return ImageSource(problems=(f"{arguments}; give exactly one of them",))
        skip_bad, reading = self.reading.skip_bad, self.reading
        if self.dataset is not None and reading.caption is not None:
            return ImageSource(problems=("caption= is for images in a directory; a dataset has a caption column",))
        if self.dataset is not None:
            source = ImageSource.of_dataset(self.dataset)
        else:
            source = ImageSource.of_folder(
                str(self.directory),
                skip_bad=skip_bad,
                manifest=self.manifest,
                caption=reading.caption,
                lines=reading.lines,
            )
        if reading.class_folder is not None:
            others = ImageSource.of_folder(reading.class_folder, skip_bad=skip_bad, caption=reading.class_caption)
            source = source.with_class_pictures(others)
        return self._with_canaries(source)

    def _with_canaries(self, source: ImageSource) -> ImageSource:
        """The source with its canaries behind it, where some are asked for."""
        if self.reading.canaries < 1 or not source.items:
            return source
        try:
            canaries = draw_canaries([caption for _, caption in source.items], self.reading.canaries)
        except ValueError as error:
            return replace(source, problems=(*source.problems, str(error)))
        return replace(source.with_class_pictures(canary_source(canaries)), canaries=tuple(canaries))

    @property
    def canaries(self) -> tuple[Canary, ...]:
        """Marked pictures: those that are planted, which are the last of `items`, and behind them the controls."""
        return self.source.canaries

    @property
    def canary_turns(self) -> list[int]:
        """How often an epoch really shows each canary: read off the examples themselves, 0 for the controls."""
        planted = sum(canary.repeats > 0 for canary in self.canaries)
        shown, first = Pictures(self).shown, len(self.items) - planted
        turns = [shown.count(first + place) for place in range(planted)]
        return [*turns, *[0] * (len(self.canaries) - planted)]

    @property
    def items(self) -> tuple[Named, ...]:
        """(path or label, caption) of every image; a batch's "index" points here."""
        return self.source.items

    @property
    def augments(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return self.framing.flip or self.framing.crop == "random" or len(self.resolutions) > 1

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides that the epochs take turns at."""
        return (self.resolution, *self.framing.resolutions)

    @property
    def buckets(self) -> bool:
        """Whether images keep their proportions."""
        return self.framing.buckets

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Width and height that each image is cropped to at `resolution`; reads every image's size for buckets."""
        square = (self.resolution, self.resolution)
        if not self.buckets:
            return (square,) * len(self.items)
        accepted = shapes(self.resolution, self.framing.bucket_step)
        return tuple(accepted[nearest_bucket(self.source.open(k).size, accepted)] for k in range(len(self.items)))

    def pixels(self, index: int) -> Tensor:
        """One training image as the model sees it without augmentation, [3, H, W] in 0..1."""
        return fitted(self.source.open(index), self.resolution)

    @property
    def secrets(self) -> int:
        """How many of `items`, the first ones, must not come back; those after them are class pictures."""
        return self.source.secrets

    @cached_property
    def image_sha256(self) -> tuple[str, ...]:
        """Content hash of every image that must not come back, in the order of `items`."""
        return tuple(self.source.sha256(index) for index in range(self.secrets))

    def all_pixels(self) -> Tensor:
        """Every image that must not come back, [N, 3, H, W] in 0..1, in the order of `items`."""
        return torch.stack([self.pixels(index) for index in range(self.secrets)])

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
        self._shares, self._varied = dict(rest), frozenset(vary)
        if self._order is not None:
            self._set_turns(self._order)

    def _set_turns(self, order: EpochOrder) -> None:
        order.shares = {at: self._shares[index] for at, index in enumerate(self._shown) if index in self._shares}
        order.marked = frozenset(at for at, index in enumerate(self._shown) if index in self._varied)

    def train_dataloader(self) -> DataLoader:
        """One epoch of shuffled batches; the last one may be smaller."""
        pictures = Pictures(self)
        order = EpochOrder(len(pictures), self.seed)
        self._order, self._shown = order, pictures.shown
        self._set_turns(order)
        batches: dict[str, Any] = {"batch_size": self.batch_size, "sampler": order}
        if self.buckets:
            used = sorted(set(self.shapes))
            bucket = [used.index(self.shapes[index]) for index in pictures.shown]
            batches = {"batch_sampler": BucketBatches(order, bucket, self.batch_size)}
        loader = ResumableLoader(
            pictures,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **batches,
        )
        loader.trainer = self.trainer
        return loader
