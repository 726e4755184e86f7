"""Pictures and weights from disk. Nothing here writes to, moves or renames what it reads."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .embedder import check_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def image_paths(folder: Path) -> list[Path]:
    """Every picture under a folder, in the order of their names; hidden files and folders are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it; says which suffixes are read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    seen = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    found = sorted(p for p in seen if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not found:
        raise ValueError(f"{folder}: no picture in it; read are {', '.join(SUFFIXES)}")
    return found


def load_image(path: Path) -> Tensor:
    """One picture as [3, H, W] in 0..1: upright, alpha laid over white, grayscale and palettes as colour.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, damaged, or so large (about 90 megapixels) that PIL takes it for a bomb.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return to_tensor(picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: too large to be a training image ({error})") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None


def load_for_eye(path: Path) -> Tensor:
    """The same for an embedder to look at, [3, H, W].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, too small, or with NaN pixels; names the file.
    """
    image = load_image(path)
    try:
        check_images(image[None])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return image


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture of any mode as [3, H, W] in 0..1; what is transparent becomes white."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I") or upright.mode == "F":  # more than 8 bits: PIL would clip instead of scaling
        values = np.asarray(upright, dtype=np.float32)
        top = 1.0 if values.max() <= 1 else 65535.0 if values.max() > 255 else 255.0
        return torch.from_numpy(values / top).clamp(0, 1).expand(3, -1, -1).clone()
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1).float() / 255


def by_size(images: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Groups pictures [3, H, W] of mixed sizes into batches [B, 3, H, W], with where each one came from."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    for where in groups.values():
        yield where, torch.stack([images[i] for i in where])


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
