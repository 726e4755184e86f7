"""Does a caption say what its image shows? Any model that scores pairs may answer, with its name beside the number."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core.images import open_image, to_rgb, to_tensor
from .scan import Scan

SIDE = 336  # pixels; CLIP models look at 224 to 336
BATCH = 32


class Scorer(Protocol):
    """Scores pairs of image and caption, such as `similarity.clip_score.ClipScore`."""

    @property
    def name(self) -> str:
        """Architecture and weights."""
        ...

    def score(self, images: Tensor, captions: list[str]) -> Tensor:
        """Cosine similarity of each image [B, 3, H, W] in [0, 1] and its caption, [B]."""
        ...


def caption_scores(scan: Scan, scorer: Scorer) -> dict[int, float]:
    """The score of every image that has a caption, by its index; the caption alone, not its variants."""
    rows = [row for row, item in enumerate(scan.items) if item.caption]
    scores: dict[int, float] = {}
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        images = torch.stack([_load(scan, row) for row in part])
        values = scorer.score(images, [scan.items[row].caption for row in part])
        scores.update(zip(part, values.tolist(), strict=True))
    return scores


def _load(scan: Scan, row: int) -> Tensor:
    with open_image(scan.items[row].path) as image:
        return to_tensor(to_rgb(image).resize((SIDE, SIDE)))
