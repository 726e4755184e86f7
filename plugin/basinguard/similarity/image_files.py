"""Picture files of a folder, as an embedder takes them. Nothing here writes to, moves or renames what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.images import SUFFIXES, BadImage, load_rgb, to_tensor
from .embedder import check_images


def image_paths(folder: Path) -> list[Path]:
    """Every picture under a folder, in the order of their names; hidden files and folders are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it; says which suffixes are read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    paths = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not paths:
        raise ValueError(f"{folder}: no picture in it; read are {', '.join(sorted(SUFFIXES))}")
    return paths


def load_image(path: Path) -> Tensor:
    """One picture as [3, H, W] in 0..1, of which an embedder can take a batch; see `core.images.to_rgb`.

    Raises:
        FileNotFoundError: no such file.
        BadImage: not a picture, damaged, too large or too small; names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        image = to_tensor(load_rgb(path))
        check_images(image[None])
    except ValueError as error:
        raise BadImage(getattr(error, "code", "unreadable"), f"{path}: {error}") from None
    return image


def by_size(images: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Groups pictures [3, H, W] of mixed sizes into batches [B, 3, H, W], with where each one came from."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    for where in groups.values():
        yield where, torch.stack([images[i] for i in where])
