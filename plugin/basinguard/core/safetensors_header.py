"""What a safetensors file holds, read from its header: names, shapes and metadata, without loading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

LENGTH = 8  # bytes that say how long the header is
LONGEST = 100_000_000  # bytes a header may have, as in the safetensors library


@dataclass(frozen=True)
class Header:
    """Names and shapes of the tensors of a file, and its metadata.

    Attributes:
        shapes: of every tensor, by name.
        metadata: whatever was written beside them.
        size: bytes of the tensors.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    size: int

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold together."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: str | Path) -> Header:
    """Reads the header and compares what it promises with the file's size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or one that ends too early; names it.

    Source: the format's description, https://github.com/huggingface/safetensors#format
    """
    path, size = Path(path), Path(path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        if size < LENGTH or length > LONGEST:
            raise ValueError(f"{path}: not a safetensors file ({size:,} bytes); download or copy it again")
        text = file.read(length)
    if len(text) < length:
        raise ValueError(_too_short(path, size, LENGTH + length))
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file ({repr(error)[:200]}); download or copy it again") from None
    if size < LENGTH + length + end:
        raise ValueError(_too_short(path, size, LENGTH + length + end))
    return Header(shapes, metadata, end)


def _too_short(path: Path, size: int, promised: int) -> str:
    return f"{path}: ends too early ({size:,} of {promised:,} bytes); download or copy it again"
