"""`basinguard compare-images`: are these two images the same?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .embedder import Embedder
from .image_files import load_image
from .local_copies import compare_locally, mark_copied
from .matching import search
from .pixel_distances import DELTA, TILES, tiled_l2
from .structure import Structure


def compare_pair(a: Path, b: Path, *, embedder: Embedder | None = None, picture: Path | None = None) -> dict[str, Any]:
    """Are these two images the same?

    Args:
        a: an image, such as a sample.
        b: another, such as the training image it may come from.
        embedder: says what is alike; None is the offline default.
        picture: where to write A with the copied part marked (PNG); None writes nothing.

    Returns:
        "similarity", "mirrored", "copy" (at or above the threshold), "metric" (name, threshold, its source), "kind"
        (verbatim, template or none) with "share" of the windows that can tell, and "tiled_l2" with its own verdict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable picture, too small, or `picture` already exists or is no PNG.
    """
    if picture is not None:
        _check_new(picture)
    embedder = embedder or Structure()
    first, second = load_image(a), load_image(b)
    reference = embedder(second[None])
    straight, flipped = (
        float(search(embedder(view[None]), reference, embedder)[0]) for view in (first, first.flip(-1))
    )
    mirrored = flipped > straight
    local = compare_locally(first, second, mirrored=mirrored)
    if picture is not None:
        _save(mark_copied(first, local), picture)
    similarity = max(straight, flipped)
    distance = _tiled(first, second.flip(-1) if mirrored else second)
    return {
        "similarity": similarity,
        "mirrored": mirrored,
        "copy": similarity >= embedder.metric.threshold,
        "metric": embedder.metric.model_dump(),
        "kind": local.kind,
        "share": local.share,
        "windows": local.windows,
        "tiled_l2": distance,
        "tiled_l2_copy": distance <= DELTA,
    }


def _tiled(a: Tensor, b: Tensor) -> float:
    side = TILES * max(1, min(*a.shape[1:], *b.shape[1:]) // TILES)
    resized = [
        torch.nn.functional.interpolate(x[None], (side, side), mode="bilinear", antialias=True).clamp(0, 1)
        for x in (a, b)
    ]
    return float(tiled_l2(*resized)[0])


def _check_new(picture: Path) -> None:
    if picture.exists():
        raise ValueError(f"{picture} already exists; give a new name")
    if picture.suffix.lower() != ".png":
        raise ValueError(f"{picture} given for the marked picture; it is written as PNG: end the name in .png")
    if not picture.parent.is_dir():
        raise FileNotFoundError(f"{picture.parent}: no such folder for the marked picture")


def _save(image: Tensor, path: Path) -> None:
    from PIL import Image

    Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path, format="PNG")
