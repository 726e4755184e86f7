"""Which training image a sample shows, and whether that makes it a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.metric import Match
from .embedder import Embedder
from .matching import nearest


class CopyDetector:
    """An embedder that has seen the training images.

    Args:
        images: the training images, [N, 3, H, W] in [0, 1].
        captions: one for each image.
        embedder: says "same image", with its threshold.
    """

    def __init__(self, images: Tensor, captions: Sequence[str], embedder: Embedder) -> None:
        self.captions, self.embedder = tuple(captions), embedder
        self.gallery = embedder(images)

    def matches(self, images: Tensor) -> list[Match]:
        """The nearest training image of each sample."""
        return nearest(images, self.gallery, self.embedder)

    def is_copy(self, images: Tensor) -> Tensor:
        """Whether each sample reproduces some training image, [B] bool."""
        return self.copied(self.matches(images))

    def copied(self, matches: Sequence[Match]) -> Tensor:
        """Whether each match is a copy, [B] bool."""
        return torch.tensor([m.similarity >= self.embedder.metric.threshold for m in matches], dtype=torch.bool)

    def is_own_copy(self, matches: Sequence[Match], captions: Sequence[str]) -> Tensor:
        """Whether each sample reproduces the training image of its own caption (or a duplicate of it), [B] bool."""
        own = torch.tensor([self.captions[m.index] == text for m, text in zip(matches, captions, strict=True)])
        return own & self.copied(matches)
