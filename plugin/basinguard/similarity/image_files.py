"""Picture files of a folder, as an embedder takes them, and their embeddings, kept by content.

A training set is embedded once, whatever its files are called later. Nothing here changes a file that it reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.files import file_sha256, whole_file
from ..core.folder_files import list_files
from ..core.images import SUFFIXES, BadImage, load_rgb, to_tensor
from ..core.progress import say
from ..core.text import printable
from .embedder import Embedder, check_images

CHUNK = 64  # pictures held at once


def image_paths(folder: Path, only: Collection[str] | None = None) -> list[Path]:
    """Every picture under a folder, by name; what `core.folder_files` leaves out is said in one line.

    Args:
        folder: where they lie.
        only: names, relative to it, of those that are meant; None means all.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no picture in it, or none of a name that is meant; says which suffixes are read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    listing = list_files(folder)
    paths = sorted(p for name in listing.names if (p := folder / name).suffix.lower() in SUFFIXES and p.is_file())
    if listing.note:
        say(f"{printable(str(folder))}: {listing.note}")
    if not paths:
        raise ValueError(f"{folder}: no picture in it; read are {', '.join(sorted(SUFFIXES))}")
    if only is None:
        return paths
    meant = [path for path in paths if path.relative_to(folder).as_posix() in only]
    if len(meant) < len(set(only)):
        raise ValueError(
            f"{folder}: {len(set(only)) - len(meant)} of {len(set(only))} pictures that are meant are not in it"
        )
    return meant


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


class Cache:
    """Unit vectors by (embedder's name, content's SHA-256), one safetensors file for each embedder.

    A damaged or foreign file is ignored and written anew; nothing else in the folder is touched.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, embedder: Embedder) -> Path:
        """Where this embedder's vectors are kept."""
        return self.folder / f"{hashlib.sha256(embedder.name.encode()).hexdigest()[:16]}.safetensors"

    def read(self, embedder: Embedder) -> dict[str, Tensor]:
        """What is known, by content hash; empty when nothing is, or when the file is not one of ours."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(embedder), "pt") as stored:
                if (stored.metadata() or {}).get("embedder") != embedder.name:
                    return {}
                return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, OSError):
            return {}

    def write(self, embedder: Embedder, vectors: dict[str, Tensor]) -> None:
        """Replaces the file in one move, so that an interruption leaves the old one."""
        from safetensors.torch import save_file

        copies = {digest: vector.clone() for digest, vector in vectors.items()}
        with whole_file(self.path(embedder), overwrite=True) as partial:
            save_file(copies, partial, metadata={"embedder": embedder.name})


def embed_files(paths: Sequence[Path], embedder: Embedder, *, cache: Cache | None = None) -> Tensor:
    """Embeddings [N, D] of picture files of mixed sizes, in the order given.

    Args:
        paths: the files.
        embedder: makes them.
        cache: where embeddings are kept; None keeps nothing.

    Raises:
        ValueError: no files, or one that is not a picture.
    """
    if not paths:
        raise ValueError("0 files given; expected at least 1 picture")
    hashes = [file_sha256(path) for path in paths]
    vectors = cache.read(embedder) if cache else {}
    missing = {digest: path for digest, path in zip(hashes, paths, strict=True) if digest not in vectors}
    todo = list(missing.items())
    for start in range(0, len(todo), CHUNK):
        vectors |= _embed(todo[start : start + CHUNK], embedder)
    if cache and todo:
        cache.write(embedder, vectors)
    return torch.stack([vectors[digest] for digest in hashes])


def _embed(todo: Sequence[tuple[str, Path]], embedder: Embedder) -> dict[str, Tensor]:
    vectors: dict[str, Tensor] = {}
    for where, batch in by_size([load_image(path) for _, path in todo]):
        vectors |= {todo[i][0]: vector for i, vector in zip(where, embedder(batch), strict=True)}
    return vectors
