"""What a feature set is: images to a few groups of numbers that a distance between two sets of images is taken in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .embedder import check_images

BATCH = 32


@runtime_checkable
class FeatureSet(Protocol):
    """Images to groups of features.

    Attributes:
        name: features, weights and version; it prints beside every number.
    """

    @property
    def name(self) -> str:
        """Features, weights and version."""
        ...

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Features [B, D] of images [B, 3, H, W] in [0, 1], by the name of their group."""
        ...


@torch.no_grad()
def features_of(images: Tensor, feature_set: FeatureSet, *, batch: int = BATCH) -> dict[str, Tensor]:
    """Features of many images [N, 3, H, W] in [0, 1], `batch` at a time: [N, D] for each group.

    Raises:
        TypeError, ValueError: what is given is no batch of images.
    """
    parts = [feature_set(part) for part in check_images(images).split(batch)]
    return {group: torch.cat([part[group].float().cpu() for part in parts]) for group in parts[0]}
