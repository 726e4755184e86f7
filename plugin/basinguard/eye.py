"""Which training image a sample shows, and whether that makes it a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .plan import TrainingSet
from .records import Match
from .similarity.embed import Embedder
from .similarity.match import nearest


class Eye:
    """An embedder that has seen the training images.

    Args:
        training: images and captions.
        embedder: says "same image", with its threshold.
    """

    def __init__(self, training: TrainingSet, embedder: Embedder) -> None:
        self.training, self.embedder = training, embedder
        self.gallery = embedder(training.images)

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
        known = self.training.captions
        own = torch.tensor([known[m.index] == text for m, text in zip(matches, captions, strict=True)])
        return own & self.copied(matches)
