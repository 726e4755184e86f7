"""Rows in batches that fit: a few fixed sizes, and half of the size whenever memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory")


class Batched:
    """A function of rows, evaluated at most `chunk` rows at once; results do not depend on `chunk`.

    Batches are padded with copies of their last row to one of a few sizes, because kernels are chosen, and on some
    backends compiled, anew for every size that was not seen before. When memory runs out the chunk is halved for good.

    Args:
        function: of tensors [B, ...] that share B, returns [B, ...].
        chunk: most rows at once.

    Example:
        >>> double = Batched(lambda x: 2 * x, chunk=4)
        >>> double(torch.arange(6.0)).tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """

    def __init__(self, function: Callable[..., Tensor], chunk: int) -> None:
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: expected at least 1 row at once")
        self.function, self.chunk = function, chunk

    def __call__(self, *rows: Tensor) -> Tensor:
        """The function's value for every row, in order."""
        parts: list[Tensor] = []
        begin = 0
        while begin < len(rows[0]):
            part = tuple(tensor[begin : begin + self.chunk] for tensor in rows)
            out = self._once(part)
            if out is not None:
                parts.append(out)
                begin += len(part[0])
        return torch.cat(parts)

    def _once(self, part: tuple[Tensor, ...]) -> Tensor | None:
        """One batch, or None when memory ran out and the chunk was halved."""
        count = len(part[0])
        try:
            return self.function(*(_padded(tensor, self.size(count)) for tensor in part))[:count]
        except (RuntimeError, MemoryError) as error:
            if self.chunk == 1 or not _exhausted(error):
                raise
        self.chunk = max(1, min(self.chunk, count) // 2)
        warnings.warn(f"{count} rows at once exhausted the memory; going on with {self.chunk}", stacklevel=4)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def size(self, count: int) -> int:
        """The size a batch of `count` rows is padded to, at most the chunk: see `padded_size`."""
        return min(padded_size(count, max(1, self.chunk // 8)), self.chunk)


def padded_size(count: int, unit: int) -> int:
    """A power of two below the unit, from there on a multiple of it: few sizes, and few rows for nothing.

    Example:
        >>> [padded_size(n, 8) for n in (0, 1, 3, 8, 9, 64)]
        [0, 1, 4, 8, 16, 64]
    """
    if count < unit:
        return min(unit, 1 << (count - 1).bit_length()) if count else 0
    return -(-count // unit) * unit


def _padded(tensor: Tensor, size: int) -> Tensor:
    missing = size - len(tensor)
    return tensor if missing <= 0 else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])


def _exhausted(error: BaseException) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(text in str(error).lower() for text in EXHAUSTED)
