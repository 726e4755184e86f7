"""What `similarity_table.py` compares: the package's embedders, and plain distances of pixels beside them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as edit

from basinguard.core.files import write_bytes
from basinguard.core.metric import Metric
from basinguard.similarity.aligned import Aligned
from basinguard.similarity.embedder import Embedder, embed_all, unit
from basinguard.similarity.matching import search
from basinguard.similarity.sscd import load_sscd
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure

Vectors = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Detector:
    """How images become vectors, and the embedder that searches among them where it is one of the package."""

    name: str
    see: Vectors
    embedder: Embedder | None = None

    def best(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The best match of each query [N, D] in a gallery [M, D]: [N]."""
        return search(queries, gallery, self.embedder)[0][:, 0]


@dataclass(frozen=True)
class Kept:
    """A slow embedder whose vectors are kept in a folder by content, so that a run that was stopped goes on."""

    slow: Embedder
    folder: Path

    @property
    def name(self) -> str:
        """Of the embedder that is kept."""
        return self.slow.name

    @property
    def metric(self) -> Metric:
        """Of the embedder that is kept."""
        return self.slow.metric

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B, D] of images [B, 3, H, W]."""
        digest = hashlib.sha256(self.name.encode() + images.contiguous().numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()}.npy"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _npy(self.slow(images)))
        return torch.from_numpy(np.load(path))


def _npy(vectors: Tensor) -> bytes:
    stream = io.BytesIO()
    np.save(stream, vectors.numpy())
    return stream.getvalue()


def detectors(sscd: Path | None, keep: Path) -> list[Detector]:
    """The package's embedders, SSCD last, behind plain distances of pixels; SSCD's vectors are kept in a folder."""
    named: list[Embedder] = [Structure(), StructureFigure(), Aligned()]
    if sscd is not None:
        named.append(Kept(load_sscd(sscd, "disc_mixup_288"), keep))
    return [
        Detector("pixel cosine, 32 px", small_pixels),
        Detector("difference hash, 256 bit", difference_hash),
        *(of_package(embedder) for embedder in named),
    ]


def of_package(embedder: Embedder) -> Detector:
    """An embedder of the package, which may search in its own way."""
    return Detector(embedder.name, lambda x: embed_all(x, embedder), embedder)


def small_pixels(images: Tensor) -> Tensor:
    """32 px pictures without their mean, at length 1: plain pixel distance, as generously as possible."""
    small = F.adaptive_avg_pool2d(images, 32).flatten(1)
    return unit(small - small.mean(1, keepdim=True) + 1e-9)


def difference_hash(images: Tensor) -> Tensor:
    """256 bits as signs: brighter than the left neighbour on a grid of 16 x 17."""
    grey = F.interpolate(edit.rgb_to_grayscale(images), (16, 17), mode="bilinear", antialias=True)
    return ((grey[..., 1:] > grey[..., :-1]).flatten(1).float() * 2 - 1) / 16
