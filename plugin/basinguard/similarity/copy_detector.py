"""Which training image a sample shows, whether that makes it a copy, and whether of an image of its own caption.

Who was copied is told by the image, never by the caption's place in a list: a set may have one caption for all its
images, and a duplicate may stand under another caption.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.metric import Match
from .embedder import Embedder, embed_all
from .matching import nearest_matches, search


class CopyDetector:
    """An embedder that has seen the training images.

    Args:
        images: the training images, [N, 3, H, W] in [0, 1].
        captions: one for each image.
        embedder: says "same image", with its threshold.
    """

    def __init__(self, images: Tensor, captions: Sequence[str], embedder: Embedder) -> None:
        self.images, self.captions, self.embedder = images, tuple(captions), embedder
        self.gallery = embed_all(images, embedder)
        self._own: dict[str, frozenset[int]] = {}
        self._duplicates: dict[int, frozenset[int]] = {}

    def matches(self, images: Tensor) -> list[Match]:
        """The nearest training image of each sample."""
        return nearest_matches(images, self.gallery, self.embedder)

    def is_copy(self, images: Tensor) -> Tensor:
        """Whether each sample reproduces some training image, [B] bool."""
        return self.copied(self.matches(images))

    def copied(self, matches: Sequence[Match]) -> Tensor:
        """Whether each match is a copy, [B] bool."""
        return torch.tensor([m.similarity >= self.embedder.metric.threshold for m in matches], dtype=torch.bool)

    def is_own_copy(self, matches: Sequence[Match], captions: Sequence[str]) -> Tensor:
        """Whether each sample reproduces a training image of its own caption or a duplicate of one, [B] bool."""
        own = torch.tensor([m.index in self.own_images(text) for m, text in zip(matches, captions, strict=True)])
        return own & self.copied(matches)

    def own_images(self, caption: str) -> frozenset[int]:
        """The training images of a caption, and those under other captions that show the same picture, by index."""
        if caption not in self._own:
            rows = [i for i, text in enumerate(self.captions) if text == caption]
            alone = 0 < len(rows) < len(self.captions)  # a set with one caption for all needs no comparison
            self._own[caption] = frozenset(rows).union(*(self._duplicates_of(rows) if alone else ()))
        return self._own[caption]

    def duplicates(self, index: int) -> frozenset[int]:
        """A training image and those that this very detector would call a copy of it, either way round, by index."""
        return self._duplicates_of([index])[0]

    def _duplicates_of(self, rows: list[int]) -> list[frozenset[int]]:
        new = [row for row in rows if row not in self._duplicates]
        if new:
            views = self.gallery[new], embed_all(self.images[new].flip(-1), self.embedder)
            tops = [search(view, self.gallery, self.embedder, k=len(self.gallery)) for view in views]
            for place, row in enumerate(new):
                alike = [i[place][v[place] >= self.embedder.metric.threshold].tolist() for v, i in tops]
                self._duplicates[row] = frozenset([row, *alike[0], *alike[1]])
        return [self._duplicates[row] for row in rows]
