"""What a model's network takes on this machine."""

from __future__ import annotations

import time
from typing import Any

import torch


@torch.no_grad()
def seconds_per_evaluation(pipe: Any, *, rows: int, resolution: int, device: torch.device) -> float:
    """Seconds that the UNet takes for one row of a batch, after a batch to warm up; the UNet is put back.

    Args:
        pipe: a Stable Diffusion pipeline.
        rows: of the batch.
        resolution: side of an image in pixels.
        device: where it is timed.
    """
    unet, side = pipe.unet, resolution // pipe.vae_scale_factor
    home, like = unet.device, {"device": device, "dtype": unet.dtype}
    x = torch.zeros(rows, unet.config.in_channels, side, side, **like)
    text = torch.zeros(rows, 77, unet.config.cross_attention_dim, **like)
    unet.to(device)
    for _ in range(2):
        start = time.monotonic()
        unet(x, torch.full((rows,), 500, device=device), encoder_hidden_states=text)
        if device.type == "cuda":
            torch.cuda.synchronize()
    seconds = time.monotonic() - start
    unet.to(home)
    return seconds / rows
