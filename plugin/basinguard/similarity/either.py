"""Two detectors as one: a copy if either says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.metric import Metric
from .embedder import Embedder, features
from .matching import search

THRESHOLD = 0.5  # of the joint similarity, whatever the thresholds of the two
NAME = re.compile(r"either (?P<first>.+) >= (?P<at>[\d.]+) or (?P<second>.+) >= (?P<other>[\d.]+)")


@dataclass(frozen=True)
class Either:
    """An embedder that calls a copy what one of two calls a copy.

    The similarity of each is put on one scale on which its threshold is 0.5 and the same picture is 1; the larger
    counts. So the thresholds of both belong to the name.

    Attributes:
        first, second: the two, with their thresholds, below 1.
        source: where those come from.

    Raises:
        ValueError: an embedder that calls nothing a copy.
    """

    first: Embedder
    second: Embedder
    source: str = "given"

    def __post_init__(self) -> None:
        for embedder in (self.first, self.second):
            if not embedder.metric.threshold < 1:
                raise ValueError(f"{embedder.name} has no threshold: measure one, or leave it out of the pair")

    @property
    def name(self) -> str:
        """Both names and thresholds."""
        one, two = ((e.name, f"{e.metric.threshold:.6g}") for e in (self.first, self.second))
        return f"either {one[0]} >= {one[1]} or {two[0]} >= {two[1]}"

    @property
    def metric(self) -> Metric:
        """The joint threshold."""
        return Metric(embedder=self.name, threshold=THRESHOLD, source=self.source)

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B, 1 + D + E] of images [B, 3, H, W] in [0, 1]: the length D of the first's, then both."""
        one, two = self.first(images).float().cpu(), self.second(images).float().cpu()
        return torch.cat([torch.full((len(one), 1), float(one.shape[1])), one, two], 1)

    def features(self, vectors: Tensor) -> Tensor:
        """Unit vectors of the first, [B, E]."""
        return features(_split(vectors)[0], self.first)

    def search(self, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` largest joint similarities and where they are; an entry that both find is listed twice."""
        values, indices = [], []
        for embedder, ours, theirs in zip((self.first, self.second), _split(queries), _split(gallery), strict=True):
            similarity, index = search(ours, theirs, embedder, k=k)
            threshold = embedder.metric.threshold
            values.append(THRESHOLD + (1 - THRESHOLD) * (similarity - threshold) / (1 - threshold))
            indices.append(index)
        best = torch.cat(values, 1).topk(k, dim=1)
        return best.values, torch.cat(indices, 1).gather(1, best.indices)


def _split(vectors: Tensor) -> tuple[Tensor, Tensor]:
    length = int(vectors[0, 0])
    return vectors[:, 1 : 1 + length], vectors[:, 1 + length :]
