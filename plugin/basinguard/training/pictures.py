"""Training examples of an image folder: pixels, caption and sizes, drawn by epoch and index alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.seeds import stream
from .buckets import nearest_bucket, shapes
from .caption_augmentation import CaptionAugmentation, draw_caption, vocabulary_of
from .cropping import Crop
from .epoch_order import MARK

if TYPE_CHECKING:
    from .data import ImageFolder


class Pictures(Dataset[dict[str, Any]]):
    """Training examples of an `ImageFolder`, addressed by epoch * count + index (see `EpochOrder`)."""

    def __init__(self, images: ImageFolder) -> None:
        self.source, self.shapes, self.resolutions = images.source, images.shapes, images.resolutions
        self.framing, self.seed, self.augmentation = images.framing, images.seed, images.caption_augmentation
        multiple = self.framing.bucket_step
        self.accepted = {side: shapes(side, multiple) for side in self.resolutions} if self.framing.buckets else {}
        repeats: Sequence[int] = self.source.repeats
        if isinstance(self.augmentation, CaptionAugmentation):
            repeats = self.augmentation.repeats(repeats)
            self.vocabulary = vocabulary_of([text for texts in self.source.captions for text in texts])
        self.shown = [index for index, count in enumerate(repeats) for _ in range(count)]
        one_size = self.framing.crop == "centre" and len(self.resolutions) == 1
        self.decoded: dict[int, tuple[Tensor, Crop]] | None = {} if images.reading.keep_in_memory and one_size else None

    def __len__(self) -> int:
        return len(self.shown)

    def __getitem__(self, key: int) -> dict[str, Any]:
        varied, key = key >= MARK, key % MARK  # by the key, because a worker has a copy of this data set
        index = self.shown[key % len(self)]
        generator = torch.Generator().manual_seed(stream(self.seed, key))
        pixels, crop = self._cropped(index, key // len(self), generator)
        mirrored = self.framing.flip and bool(torch.rand((), generator=generator) < 0.5)
        if mirrored:
            pixels = pixels.flip(-1)
        caption, sizes = self._caption(index, key, varied), crop.sizes(mirrored=mirrored)
        example = {"pixel_values": pixels * 2 - 1, "caption": caption, "index": index, "sizes": sizes}
        if isinstance(self.augmentation, CaptionAugmentation) and self.augmentation.noise:
            example["embedding_noise"] = self.augmentation.noise
        return example

    def _caption(self, index: int, key: int, varied: bool) -> str:
        caption = self.source.items[index][1]
        if varied:
            caption = draw_caption(self.source.captions[index], random.Random(stream(self.seed, key)))
        if isinstance(self.augmentation, CaptionAugmentation):
            rng = random.Random(stream(self.seed, key))
            captions = [caption] if varied else self.source.captions[index]
            return self.augmentation.caption(captions, self.vocabulary, rng)
        return caption if self.augmentation is None else self.augmentation(caption)

    def _cropped(self, index: int, epoch: int, generator: torch.Generator) -> tuple[Tensor, Crop]:
        side = self.resolutions[epoch % len(self.resolutions)]
        accepted = self.accepted.get(side, ((side, side),))
        size = accepted[nearest_bucket(self.shapes[index], accepted)]
        if self.decoded is None:
            image = self.source.open(index)
            crop = Crop.of(image.size, size, generator if self.framing.crop == "random" else None)
            return crop.pixels(image), crop
        if index not in self.decoded:
            image = self.source.open(index)
            crop = Crop.of(image.size, size)
            self.decoded[index] = (crop.pixels(image) * 255).round().to(torch.uint8), crop
        pixels, crop = self.decoded[index]
        return pixels.float() / 255, crop
