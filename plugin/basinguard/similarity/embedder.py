"""What an embedder is: images in, unit vectors out, and a `Metric` that names the embedder beside every number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.metric import Metric

SMALLEST_SIDE = 16  # below this there is no layout to compare
BATCH = 64


@runtime_checkable
class Embedder(Protocol):
    """Images to unit vectors, so that a dot product is the similarity (1 = same).

    Attributes:
        name: embedder, weights and version, in one word; it prints beside every number.
        metric: the name with its threshold and where that threshold comes from.
    """

    @property
    def name(self) -> str:
        """Embedder, weights and version, in one word."""
        ...

    @property
    def metric(self) -> Metric:
        """The name with its threshold and where that threshold comes from."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [0, 1]."""
        ...


@runtime_checkable
class TwoStage(Embedder, Protocol):
    """An embedder whose vectors do not decide by their dot product: they are searched by a method of its own."""

    def search(self, queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` entries of a gallery [M, D] most like queries [N, D]: similarities and places, both [N, <= k]."""
        ...

    def features(self, vectors: Tensor) -> Tensor:
        """What of vectors [B, D] a dot product may compare, unit vectors [B, E]: for likeness, not for copies."""
        ...


def two_stage(embedder: Embedder) -> TwoStage | None:
    """The embedder's own search, under whatever wrapping; None where a dot product decides."""
    while isinstance(embedder, Wrapped):
        embedder = embedder.embedder
    return embedder if isinstance(embedder, TwoStage) else None


def features(vectors: Tensor, embedder: Embedder) -> Tensor:
    """Vectors [B, D] of an embedder as unit vectors [B, E] whose dot product says how alike images are."""
    stages = two_stage(embedder)
    return stages.features(vectors) if stages else vectors


@runtime_checkable
class Wrapped(Protocol):
    """An embedder around another one."""

    @property
    def embedder(self) -> Embedder:
        """The embedder inside."""
        ...


@dataclass(frozen=True)
class WithThreshold:
    """The same embedder with another threshold, such as one measured on the user's own images.

    Attributes:
        embedder: the embedder.
        metric: the threshold, measured with this embedder.

    Raises:
        ValueError: the threshold was measured for another embedder.
    """

    embedder: Embedder
    metric: Metric

    def __post_init__(self) -> None:
        if self.metric.embedder != self.embedder.name:
            raise ValueError(
                f"the threshold belongs to {self.metric.embedder}, this is {self.embedder.name}: measure one for it"
            )

    @property
    def name(self) -> str:
        """Embedder, weights and version."""
        return self.embedder.name

    def __call__(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [0, 1]."""
        return self.embedder(images)


def check_images(images: Tensor, *, smallest: int = SMALLEST_SIDE) -> Tensor:
    """Returns `images` as float32 if an embedder can look at them.

    Args:
        images: [B, 3, H, W], values in [0, 1].
        smallest: the least height and width, in pixels.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, no images, sides too small, NaN, or values outside [0, 1].
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"images of type {kind} given; expected a float tensor [B, 3, H, W] in [0, 1]: divide bytes by 255"
        )
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(
            f"images of shape {list(images.shape)} given; expected [B, 3, H, W] with B >= 1: "
            "`core.images.to_tensor` converts grayscale, alpha and mixed sizes"
        )
    if min(images.shape[2:]) < smallest:
        raise ValueError(
            f"images of {images.shape[3]}x{images.shape[2]} pixels given; each side needs at least {smallest}"
        )
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN, which compares false
        raise ValueError(f"pixel values from {low} to {high} given; expected finite values in [0, 1]")
    exact = images.float()
    return exact if low >= 0 and high <= 1 else exact.clamp(0, 1)  # a copy of a batch costs as much as describing it


def unit(vectors: Tensor) -> Tensor:
    """Vectors [B, D] at length 1.

    Raises:
        ValueError: a vector is zero or not finite; says which, because a similarity to it would mean nothing.
    """
    length = vectors.norm(dim=1, keepdim=True)
    wrong = ~torch.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if bool(wrong.any()):
        raise ValueError(f"embedding of image {int(wrong.nonzero()[0])} is zero or not finite: the weights are damaged")
    return vectors / length


@torch.no_grad()
def embed_all(images: Tensor, embedder: Embedder, *, batch: int = BATCH) -> Tensor:
    """Embeddings [N, D] of many images [N, 3, H, W], `batch` at a time.

    Raises:
        ValueError: no images, or images that the embedder refuses.
    """
    if len(images) == 0:
        raise ValueError("0 images given; expected at least 1")
    return torch.cat([embedder(part) for part in images.split(batch)])
