"""A record belongs to one resolution: a smaller latent leaves its basin at a lower noise level, a larger one higher."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@contextmanager
def watched(pipe: DiffusionPipeline, denoiser: Any, resolution: int | None) -> Iterator[None]:
    """Inside, warns at the first evaluation of latents of another size than the calibrated one.

    Args:
        pipe: knows how many pixels a latent stands for.
        denoiser: what is called with the latents.
        resolution: side of the calibrated images, in pixels; None watches nothing. A compiled denoiser is not watched:
            hooks would be traced into its graph.
    """
    factor = getattr(pipe, "vae_scale_factor", None)
    if resolution is None or factor is None or getattr(denoiser, "_compiled_call_impl", None) is not None:
        yield
        return

    def check(module: Any, args: tuple, kwargs: dict) -> None:
        handle.remove()
        latents = next((kwargs[name] for name in ("sample", "hidden_states") if name in kwargs), None)
        latents = args[0] if latents is None else latents
        first = latents if isinstance(latents, Tensor) else latents[0]
        height, width = (side * factor for side in first.shape[-2:])
        if (height, width) != (resolution, resolution):
            warnings.warn(
                f"the rule was calibrated on {resolution} x {resolution} images, this one is {width} x {height}: its "
                "transition is likely wrong here; calibrate the model at this size",
                stacklevel=2,
            )

    handle = denoiser.register_forward_pre_hook(check, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
