"""Palette, layout of light and colour, and grain of an image: 97 numbers without any weights.

They see what a style is made of (ink on cream paper, flat colours, soft light) and little of what is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 256  # longer sides are brought here, so that grain means the same at every size
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
GRID = 3  # cells a side, for the layout of light and colour
BINS = 8  # of the luminance histogram
GRADIENT_OCTAVES = 3
BANDS = 5  # octaves of luminance, the finest first
FLOOR = 1e-6  # energy of a thousandth of the range, so that a flat image has a logarithm


@dataclass(frozen=True)
class ColourTexture:
    """Two groups of features of images [B, 3, H, W] in [0, 1]: "colour", [B, 71], and "texture", [B, 26]."""

    name: str = "colour-texture-v1"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The features by group."""
        planes = opponent_planes(_at_most(images.float(), LARGEST))
        return {"colour": colour(planes), "texture": texture(planes)}


def opponent_planes(images: Tensor) -> Tensor:
    """Luminance, red against green, and yellow against blue, [B, 3, H, W]."""
    red, green, blue = images.unbind(1)
    luminance = LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue
    return torch.stack([luminance, red - green, (red + green) / 2 - blue], 1)


def colour(planes: Tensor) -> Tensor:
    """Moments of the planes (9), mean and deviation in cells (54), and the luminance histogram (8): [B, 71]."""
    cells = F.adaptive_avg_pool2d(planes, GRID)
    spread = (F.adaptive_avg_pool2d(planes**2, GRID) - cells**2).clamp(min=0).sqrt()
    layout = torch.cat([cells, spread], 1).flatten(1)
    return torch.cat([moments(planes), layout, histogram(planes[:, 0])], 1)


def moments(planes: Tensor) -> Tensor:
    """Mean, standard deviation and cube root of the third central moment of each plane: [B, 9]."""
    pixels = planes.flatten(2)
    mean = pixels.mean(2, keepdim=True)
    third = ((pixels - mean) ** 3).mean(2)
    return torch.cat([mean[..., 0], pixels.std(2, correction=0), third.sign() * third.abs() ** (1 / 3)], 1)


def histogram(luminance: Tensor) -> Tensor:
    """Share of the pixels in each of 8 even bins of [0, 1], [B, 8]."""
    bins = (luminance * BINS).long().clamp(0, BINS - 1).flatten(1)
    return F.one_hot(bins, BINS).float().mean(1)


def texture(planes: Tensor) -> Tensor:
    """Log energy (9) and orientation (12) of gradients at three octaves, log energy of five bands (5): [B, 26]."""
    gradients = [gradient(octave(planes, k)) for k in range(GRADIENT_OCTAVES)]
    energies = [log_energy(dx**2 + dy**2) for dx, dy in gradients]
    orientations = [orientation(dx[:, 0], dy[:, 0]) for dx, dy in gradients]
    bands = [log_energy(octave_band(planes[:, :1], k) ** 2) for k in range(BANDS)]
    return torch.cat([*energies, *orientations, *bands], 1)


def gradient(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and downward, both [B, C, H - 1, W - 1]."""
    here = planes[..., :-1, :-1]
    return planes[..., :-1, 1:] - here, planes[..., 1:, :-1] - here


def orientation(dx: Tensor, dy: Tensor) -> Tensor:
    """Share of the gradient's energy near 0, 45, 90 and 135 degrees: [B, 4].

    A gradient of energy g at angle a counts as g * max(0, cos 2(a - b)) for direction b; both follow from the doubled
    angle, g cos 2a = dx^2 - dy^2 and g sin 2a = 2 dx dy.
    """
    cosine, sine = dx**2 - dy**2, 2 * dx * dy
    near = torch.stack([cosine, sine, -cosine, -sine], 1).clamp(min=0).mean((2, 3))
    return near / ((dx**2 + dy**2).mean((1, 2)) + FLOOR)[:, None]


def octave_band(planes: Tensor, k: int) -> Tensor:
    """What octave k holds beyond the next coarser one, [B, C, h, w]."""
    fine = octave(planes, k)
    coarse = octave(planes, k + 1)
    return fine - F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)


def octave(planes: Tensor, k: int) -> Tensor:
    """The planes with their sides halved k times by averaging, down to no less than 2 pixels."""
    for _ in range(k):
        if min(planes.shape[2:]) >= 4:
            planes = F.avg_pool2d(planes, 2)
    return planes


def log_energy(squares: Tensor) -> Tensor:
    """Logarithm of the mean over space, [B, C]."""
    return (squares.mean((2, 3)) + FLOOR).log()


def _at_most(images: Tensor, side: int) -> Tensor:
    longest = max(images.shape[2:])
    if longest <= side:
        return images
    size = [max(1, length * side // longest) for length in images.shape[2:]]
    return F.interpolate(images, size=size, mode="area")
