"""Carlini et al.'s distances, as published: on pixels in 0..1, no embedding, smaller is more alike.

Source: Carlini et al., "Extracting Training Data from Diffusion Models", arXiv 2301.13188: Definition 1 with the
normalised 2-norm and delta = 0.15, the 16 tiles of its attack on Stable Diffusion, and the relative distance of its
CIFAR-10 study (50 neighbours, alpha = 0.5). The constants are those that later work quotes from it; the tiles were
checked in public re-implementations, delta and alpha against no second source.
"""

from __future__ import annotations

from torch import Tensor

from .embedder import check_images

DELTA = 0.15
TILES = 4  # on a side: 16 tiles, of 128 pixels at 512
ALPHA = 0.5
NEIGHBOURS = 50


def l2(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(mean((a - b)^2)) of each pair of images [B, 3, H, W], [B]; in [0, 1].

    Example:
        >>> l2(torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), 0.25))
        tensor([0.2500])
    """
    x, y = _pair(a, b)
    return (x - y).pow(2).flatten(1).mean(1).sqrt()


def tiled_l2(a: Tensor, b: Tensor) -> Tensor:
    """The largest `l2` among 16 tiles that do not overlap, [B]; at most DELTA is a copy.

    One tile that differs is enough to say "another image": two pictures with the same empty background stay apart.

    Raises:
        ValueError: shapes that differ, or sides that 4 does not divide.
    """
    x, y = _pair(a, b)
    height, width = x.shape[2:]
    if height % TILES or width % TILES:
        raise ValueError(f"images of {width}x{height} pixels given; tiled_l2 needs sides that {TILES} divides")
    tiles = (x - y).pow(2).mean(1).unflatten(2, (TILES, -1)).unflatten(1, (TILES, -1))
    return tiles.mean((2, 4)).flatten(1).max(1).values.sqrt()


def adaptive_l2(sample: Tensor, train: Tensor) -> Tensor:
    """Distance of one sample [3, H, W] to each training image, relative to its 50 nearest; at most 1 is a copy, [M].

    l2(sample, x) / (0.5 * mean of l2 to the 50 nearest training images): made for sets where every image of one kind
    is close to every other.

    Raises:
        ValueError: fewer than 51 training images.
    """
    if len(train) <= NEIGHBOURS:
        raise ValueError(f"{len(train)} training images given; adaptive_l2 needs more than {NEIGHBOURS}")
    distances = l2(sample.expand_as(train), train)
    return distances / (ALPHA * distances.topk(NEIGHBOURS, largest=False).values.mean()).clamp(min=1e-12)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"images of shapes {list(a.shape)} and {list(b.shape)} given; resize them alike first")
    return check_images(a, smallest=1), check_images(b, smallest=1)
