"""The last grid position at which something is still true, for many rows at once, each from its own guess."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def last_position(
    reproduces: Callable[[Tensor, Tensor], Tensor],
    first: Tensor,
    count: int,
    *,
    guess: Tensor | None = None,
    resolution: int = 1,
) -> Tensor:
    """For every row at once, the largest grid position at which it still reproduces a training image.

    Without a guess this is bisection. With one, each row tries its guess and then steps away from it, 1, 2, 4, ...
    positions further, until the answer lies between two tries; a good guess takes two. The answer is the same
    wherever the outcomes are ordered.

    Args:
        reproduces: (rows [K], position of each [K]) -> outcome [K] bool.
        first: outcome at position 0 (guidance from the very start), [N] bool.
        count: number of grid positions; position `count` stands for "guidance never on", which does not reproduce.
        guess: where the answer may be, [N].
        resolution: leave off when at most this many positions are open.

    Returns:
        [N] int64: -1 where even position 0 does not reproduce; never above the answer, and below it by less than
        `resolution`.
    """
    low, high = torch.where(first, 0, -1), torch.full(first.shape, count)
    stride = torch.zeros_like(low) if guess is None else torch.ones_like(low)  # 0: bisecting
    position = (low + high) // 2 if guess is None else guess
    last_hit = torch.zeros_like(first)
    tried = torch.zeros_like(first)
    while bool((open_ := first & (high - low > resolution)).any()):
        rows = open_.nonzero().squeeze(1)
        at = position[rows].clamp(low[rows] + 1, high[rows] - 1)
        hit = reproduces(rows, at)
        low[rows], high[rows] = torch.where(hit, at, low[rows]), torch.where(hit, high[rows], at)
        turned = tried[rows] & (hit != last_hit[rows])
        stride[rows] = torch.where(turned, 0, stride[rows])
        further = torch.where(hit, at + stride[rows], at - stride[rows])
        position[rows] = torch.where(stride[rows] == 0, (low[rows] + high[rows]) // 2, further)
        stride[rows] *= 2
        last_hit[rows], tried[rows] = hit, True
    return low
