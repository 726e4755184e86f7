"""Where on a sampler's grid guidance may begin, and the finer grid below that."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_positions(timesteps: Tensor, transitions: tuple[float, ...]) -> list[int]:
    """Positions on the sampler's grid of the transitions to try; all but the first when none is named.

    Raises:
        ValueError: a transition below the whole grid.

    Example:
        >>> grid_positions(torch.tensor([999, 749, 499, 249]), (500, 800))
        [1, 2]
    """
    if not transitions:
        return list(range(1, len(timesteps)))
    positions = sorted({int((timesteps > transition).sum()) for transition in transitions})
    if positions[-1] >= len(timesteps):
        raise ValueError(f"transition {min(transitions)} lies below the sampler's last timestep {int(timesteps[-1])}")
    return positions


def refined_grid(timesteps: Tensor, position: int, refine: int) -> Tensor:
    """What is left of a grid from `position` on, with every step split in `refine` equal ones.

    Example:
        >>> refined_grid(torch.tensor([999, 749, 499, 249]), 2, 2).tolist()
        [499, 374, 249, 124]
    """
    own = timesteps[position:]
    if refine == 1:
        return own
    ends = torch.cat([own[1:], own.new_tensor([-1])])
    share = torch.arange(refine, dtype=torch.float64) / refine
    finer = (own[:, None] + share * (ends - own)[:, None]).flatten()
    return finer if own.is_floating_point() else finer.round().to(own.dtype)
