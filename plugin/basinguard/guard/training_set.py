"""The images that must not come back, their captions, and the control group beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class TrainingSet:
    """The images that must not come back, and what they are called.

    Attributes:
        images: [N, 3, H, W] in [0, 1], as the model sees them.
        captions: one for each image.
        heldout: prompts the model was not trained on: the control group.
        heldout_images: their images, [M, 3, H, W], where there are any: the control of critical scales.
        image_sha256: content hash of each image's file, by which a later curation finds it; none where that is unknown.
        stand_in: `heldout` are stand-ins, see `control_prompts`; their images are drawn by the base model when they are
            needed.
    """

    images: Tensor
    captions: tuple[str, ...]
    heldout: tuple[str, ...] = ()
    heldout_images: Tensor | None = None
    stand_in: bool = False
    image_sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions) or not self.captions:
            raise ValueError(f"{len(self.images)} images and {len(self.captions)} captions: need one caption an image")
        if len(self.image_sha256) not in (0, len(self.images)):
            raise ValueError(f"{len(self.images)} images and {len(self.image_sha256)} hashes: need one hash an image")
        if self.heldout_images is not None and len(self.heldout_images) != len(self.heldout):
            raise ValueError(
                f"{len(self.heldout_images)} held-out images and {len(self.heldout)} prompts: need one prompt an image"
            )
        if self.heldout_images is not None and self.heldout_images.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"training images are {_size(self.images)} and held-out images {_size(self.heldout_images)}: "
                "both stand for what the model draws, so give them at one size"
            )
        leaked = sorted(set(self.heldout) & set(self.captions))
        if leaked:
            raise ValueError(f"held-out prompts must not be training captions; {leaked[0]!r} is one")

    @cached_property
    def first_of(self) -> tuple[int, ...]:
        """For each image the first one whose caption says the same; case and spaces say nothing."""
        first: dict[str, int] = {}
        return tuple(first.setdefault(_words(caption), index) for index, caption in enumerate(self.captions))

    @cached_property
    def rank_of(self) -> tuple[int, ...]:
        """How many images before each one have a caption that says the same: each takes noise of its own."""
        counts: dict[int, int] = {}
        ranks = []
        for first in self.first_of:
            ranks.append(counts.get(first, 0))
            counts[first] = ranks[-1] + 1
        return tuple(ranks)

    def count(self, caption: str) -> int:
        """How many images carry this caption."""
        return self.captions.count(caption)

    def images_of(self, caption: str) -> list[int]:
        """The images that carry this caption, by index."""
        return [i for i, text in enumerate(self.captions) if text == caption]


def _size(images: Tensor) -> str:
    return " x ".join(map(str, images.shape[1:]))


def _words(caption: str) -> str:
    return " ".join(caption.lower().split())
