"""What `similarity_table.py` compares: the package's embedders, and plain distances of pixels beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.similarity.aligned import Aligned
from basinguard.similarity.embedder import Embedder, embed_all, two_stage, unit
from basinguard.similarity.pixel_distances import tiled_l2
from basinguard.similarity.sscd import load_sscd
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure

Vectors = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Detector:
    """How images become vectors, how two are compared row by row, and the embedder where it is one of the package."""

    name: str
    see: Vectors
    compare: Callable[[Tensor, Tensor], Tensor]
    embedder: Embedder | None = None


def detectors(sscd: Path | None) -> list[Detector]:
    """The package's embedders, SSCD last, behind plain distances of pixels."""
    named: list[Embedder] = [Structure(), StructureFigure(), Aligned()]
    if sscd is not None:
        named.append(load_sscd(sscd, "disc_mixup_288"))
    return [
        Detector("tiled l2, 64 px", lambda x: F.adaptive_avg_pool2d(x, 64), lambda a, b: 1 - tiled_l2(a, b)),
        Detector("pixel cosine, 32 px", small_pixels, product),
        Detector("difference hash, 256 bit", difference_hash, product),
        *(of_package(embedder) for embedder in named),
    ]


def of_package(embedder: Embedder) -> Detector:
    """An embedder of the package, which may compare in its own way."""
    stages: Any = two_stage(embedder)
    return Detector(
        embedder.name, lambda x: embed_all(x, embedder), stages.compare if stages is not None else product, embedder
    )


def small_pixels(images: Tensor) -> Tensor:
    """32 px pictures without their mean, at length 1: plain pixel distance, as generously as possible."""
    small = F.adaptive_avg_pool2d(images, 32).flatten(1)
    return unit(small - small.mean(1, keepdim=True) + 1e-9)


def difference_hash(images: Tensor) -> Tensor:
    """256 bits as signs: brighter than the left neighbour on a grid of 16 x 17."""
    grey = F.interpolate(edit.rgb_to_grayscale(images), (16, 17), mode="bilinear", antialias=True)
    return ((grey[..., 1:] > grey[..., :-1]).flatten(1).float() * 2 - 1) / 16


def product(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
