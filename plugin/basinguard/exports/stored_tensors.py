"""The tensors of a safetensors file as bytes: what a fingerprint needs, without loading torch."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..core.safetensors_header import read_entries, read_header

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
FLOATS = {"torch.float16": "<e", "torch.float32": "<f", "torch.float64": "<d"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file.

    Attributes:
        dtype: torch's name of it, such as "torch.float32".
        shape: its sizes.
        data: its bytes, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of_number(cls, value: float) -> Self:
        """What `torch.tensor(value)` is stored as."""
        return cls("torch.float32", (), struct.pack("<f", value))

    def __float__(self) -> float:
        if self.dtype not in FLOATS:
            raise ValueError(f"a {self.dtype} is no number that a LoRA's alpha is stored as")
        return float(struct.unpack(FLOATS[self.dtype], self.data)[0])


def stored_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Every tensor of a safetensors file, one after the other.

    Raises:
        ValueError: not a safetensors file, or one that ends too early.
    """
    read_header(path)  # refuses what is not whole
    # read by hand from here on: `safe_open` does not give the bytes of a dtype that numpy lacks
    with path.open("rb") as file:
        entries, start = read_entries(file), file.tell()
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            file.seek(start + first)
            dtype = DTYPES.get(entry["dtype"], entry["dtype"])
            yield name, StoredTensor(f"torch.{dtype}", tuple(entry["shape"]), file.read(last - first))
