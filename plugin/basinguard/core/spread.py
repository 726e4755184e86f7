"""A few of many, evenly: what is measured where everything would be too much."""

from __future__ import annotations

import numpy as np


def spread(total: int, count: int) -> list[int]:
    """`count` of `total` indices, evenly over them; all where there are fewer.

    Example:
        >>> spread(10, 4), spread(2, 4)
        ([0, 3, 6, 9], [0, 1])
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
