"""Independent random streams from one seed."""

from __future__ import annotations

import numpy as np


def stream(seed: int, *counts: int) -> int:
    """A seed of its own for each (seed, counts), in 0..2^32 - 1.

    torch's CPU generator reads the lowest 32 bits of a seed alone, so counts cannot simply be shifted above them.

    Source: O'Neill, "Developing a seed_seq alternative" (2015), as numpy's SeedSequence.

    Example:
        >>> stream(0, 1) == stream(1, 0)
        False
    """
    return int(np.random.SeedSequence([seed, *counts]).generate_state(1)[0])
