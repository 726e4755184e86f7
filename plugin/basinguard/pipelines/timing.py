"""What a model's network takes on this machine."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils._pytree import tree_map

from .families.registry import family_of


@torch.no_grad()
def seconds_per_evaluation(pipe: Any, *, rows: int, resolution: int, device: torch.device) -> float:
    """Seconds that the denoiser takes for one row of a batch, after a batch to warm up; the denoiser is put back.

    Args:
        pipe: of any family.
        rows: of the batch.
        resolution: side of an image in pixels.
        device: where it is timed.
    """
    family = family_of(pipe)
    network = family.denoiser(pipe)
    home, dtype = network.device, network.dtype
    x = torch.zeros(rows, *family.latent_shape(pipe, resolution), device=device, dtype=dtype)
    empty = family.condition(pipe, (), resolution, dtype).arguments(torch.zeros(rows, dtype=torch.int64))
    arguments = tree_map(lambda part: part.to(device) if isinstance(part, torch.Tensor) else part, empty)
    network.to(device)
    for _ in range(2):
        start = time.monotonic()
        family.forward(pipe, x, torch.full((rows,), 500, device=device), arguments)
        if device.type == "cuda":
            torch.cuda.synchronize()
    seconds = time.monotonic() - start
    network.to(home)
    return seconds / rows
