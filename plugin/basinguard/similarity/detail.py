"""Do samples have about as much detail as what was taught? What has far less is mush, far more is noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

FACTOR = 4.0  # chosen beforehand: a picture blurred by two pixels loses about so much


def detail(images: Tensor) -> Tensor:
    """Mean absolute difference of a picture and its average over 3 x 3 pixels, of each of [N, 3, H, W] in [0, 1]."""
    grey = images.float().mean(1, keepdim=True)
    inside = avg_pool2d(grey, 3, stride=1)
    return (grey[..., 1:-1, 1:-1] - inside).abs().mean((1, 2, 3))


def look_at(samples: Tensor, truth: Tensor) -> str:
    """What is wrong with samples beside true images, in words; "" where nothing is.

    Args:
        samples: [N, 3, H, W] in [0, 1].
        truth: likewise, of any size; compared at the samples'.

    Example:
        >>> rough = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> look_at(rough, rough), look_at(torch.full_like(rough, 0.5), rough)[:38]
        ('', 'its samples have 0.0 times the detail ')
    """
    if not len(samples) or not len(truth):
        return ""
    size = samples.shape[-2:]
    fitted = truth if truth.shape[-2:] == size else torch.nn.functional.interpolate(truth, size, mode="area")
    ratio = float(detail(samples).median() / detail(fitted).median().clamp(min=1e-6))
    if 1 / FACTOR <= ratio <= FACTOR:
        return ""
    kind = "mush" if ratio < 1 else "noise"
    return f"its samples have {ratio:.1f} times the detail of the training images, as {kind} has: look at them"
