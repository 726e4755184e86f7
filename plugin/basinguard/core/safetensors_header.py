"""What a safetensors file holds, read from its header: names, shapes and metadata, without loading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from .text import one_line

LONGEST = 100_000_000  # bytes a header may have, as in the safetensors library
CUT = ("not fully covered", "invalid header length")  # what the library says of a file that ends too early


@dataclass(frozen=True)
class Header:
    """Names and shapes of the tensors of a file, and its metadata.

    Attributes:
        shapes: of every tensor, by name.
        metadata: whatever was written beside them; as untrusted as the file.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold together."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: str | Path, *, longest: int = LONGEST) -> Header:
    """Reads the header, which also compares what it promises with the file's size.

    Args:
        path: the file.
        longest: bytes of a header above which it is not parsed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, one that ends too early, or a header over the limit; names the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    size = path.stat().st_size
    if length > longest:
        raise ValueError(f"{path}: not a safetensors file, or its header of {length} bytes is over {longest}")
    try:
        with safe_open(path, framework="np") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            return Header(shapes, dict(tensors.metadata() or {}))
    except (SafetensorError, OSError) as error:
        if any(words in str(error) for words in CUT):
            raise ValueError(f"{path}: ends too early ({size:,} bytes); download or copy it again") from None
        why = one_line(str(error), 160)
        raise ValueError(f"{path}: not a safetensors file ({size:,} bytes; {why}); download or copy it again") from None


def read_entries(file: BinaryIO) -> dict[str, Any]:
    """The header's own JSON, for what `safe_open` does not give; the file is left where the tensors begin.

    Args:
        file: opened at its beginning, and known to be whole (`read_header`).

    Source: the format's description, https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return entries
