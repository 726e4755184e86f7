"""What samplers do to a picture they copy, as edits of pixels: the copies that a detector must not miss.

A sampled copy is never byte for byte: guidance saturates it, the autoencoder and few steps blur it, and what the model
re-draws ends up a little elsewhere. The edits of the model itself (its autoencoder's round trip, a re-draw from partial
noise) are added where the model is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Edit = Callable[[Tensor], Tensor]
SATURATION, CONTRAST = 2.5, 1.5  # of too much guidance
BLUR = 0.02  # of the picture's side
SHIFT = 0.04  # of the picture's side
CROP = 0.9  # of the side that is kept


def saturated(images: Tensor) -> Tensor:
    """Saturation and contrast up and clipped, as too much guidance does, of images [B, 3, H, W] in [0, 1]."""
    grey = images.mean(1, keepdim=True)
    vivid = (grey + SATURATION * (images - grey)).clamp(0, 1)
    mean = vivid.mean((1, 2, 3), keepdim=True)
    return (mean + CONTRAST * (vivid - mean)).clamp(0, 1)


def blurred(images: Tensor) -> Tensor:
    """Blurred by a fiftieth of the side."""
    from torchvision.transforms.v2 import functional as edit

    sigma = max(0.3, BLUR * images.shape[-1])
    side = 2 * round(3 * sigma) + 1
    return edit.gaussian_blur(images, [side, side], [sigma, sigma])


def shifted(images: Tensor) -> Tensor:
    """Shifted by 4 % of the side, down and to the right; what comes in repeats the border."""
    step = max(1, round(SHIFT * images.shape[-1]))
    height, width = images.shape[2:]
    return F.pad(images, (step, 0, step, 0), mode="replicate")[..., :height, :width]


def cropped(images: Tensor) -> Tensor:
    """The upper left nine tenths of each side, enlarged."""
    height, width = images.shape[2:]
    part = images[..., : round(CROP * height), : round(CROP * width)]
    return F.interpolate(part, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


PIXEL_EDITS: Mapping[str, Edit] = {
    "saturation": saturated,
    "blur": blurred,
    "shift 4 %": shifted,
    "crop to 81 %": cropped,
    "saturation, blur and shift": lambda images: shifted(saturated(blurred(images))),
}


@torch.no_grad()
def apply(edit: Edit, images: Tensor) -> Tensor:
    """An edit of images [B, 3, H, W], kept inside [0, 1]."""
    return edit(images).clamp(0, 1)
