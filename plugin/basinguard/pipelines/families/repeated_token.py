"""Attention over many equal tokens at the price of one, for a transformer that gives its tokens no places.

Equal tokens stay equal in every layer of such a transformer: each asks the same, and is asked by all others alike. One
of them is carried through the layers, and only where keys and values are attended to does it stand there as often as
before. The prediction is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class RepeatedToken(TorchFunctionMode):
    """Inside, attention over `keys` of them is attention with the last key and value `times` over.

    Args:
        keys: how many; attention over another number is left alone.
        times: how often the last one counts, at least 1.
    """

    def __init__(self, keys: int, times: int) -> None:
        super().__init__()
        self.keys, self.times = keys, times

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every function of torch goes through here."""
        if func is scaled_dot_product_attention and args[1].shape[-2] == self.keys:
            query, key, value = args
            args = (query, last_repeated(key, self.times), last_repeated(value, self.times))
        return func(*args, **(kwargs or {}))


def last_repeated(tokens: Tensor, times: int) -> Tensor:
    """The last of tokens [..., L, D] `times` over, [..., L + times - 1, D].

    Example:
        >>> last_repeated(torch.tensor([[1.0], [2.0]]), 3).flatten().tolist()
        [1.0, 2.0, 2.0, 2.0]
    """
    last = tokens[..., -1:, :]
    return torch.cat([tokens, last.expand(*last.shape[:-2], times - 1, -1)], dim=-2)


def equal_at_end(tokens: Tensor, times: int) -> bool:
    """Whether the last `times` of tokens [B, L, D] are equal, in every row."""
    return bool((tokens[:, -times:] == tokens[:, -1:]).all())
