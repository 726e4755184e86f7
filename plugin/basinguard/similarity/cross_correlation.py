"""Where does a piece lie in a picture? Normalized cross-correlation at every place where it fits.

Source: Lewis, "Fast Template Matching", Vision Interface (1995): products of spectra, and running sums for the energy
under the piece. Only the few places where a piece lies inside the picture are transformed back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 0.02  # mean square of detail that is reckoned with at least, so that a flat piece fits nowhere


@dataclass(frozen=True)
class Pieces:
    """Pieces of one size, ready to be searched for.

    Attributes:
        size: height and width, in pixels.
        spectra: conjugate half spectra on the canvas, [U, S, S / 2 + 1].
        length: inverse root of each one's energy, [U].
    """

    size: tuple[int, int]
    spectra: Tensor
    length: Tensor


class Canvas:
    """Pictures [U, V, S, S] that pieces are searched in, V views of each, with what every search needs of them."""

    def __init__(self, pictures: Tensor) -> None:
        self.side = pictures.shape[-1]
        self.spectra = torch.fft.rfft2(pictures)
        self.sums = F.pad((pictures**2).cumsum(2).cumsum(3), (1, 0, 1, 0))
        self.scales: dict[tuple[int, int], Tensor] = {}

    def correlate(self, whole: Tensor, pieces: Pieces, part: Tensor) -> Tensor:
        """Normalized cross-correlation of pieces with pictures, at every place that fits.

        Args:
            whole: which picture, [P].
            pieces: to be found, U of H x W.
            part: which piece, [P].

        Returns:
            Correlations [P, V, S - H + 1, S - W + 1].
        """
        height, width = pieces.size
        products = self.spectra[whole] * pieces.spectra[part][:, None]
        values = back(products, self.side - height + 1, self.side - width + 1)
        return values.mul_(self._scale(height, width)[whole]).mul_(pieces.length[part][:, None, None, None])

    def pieces(self, images: Tensor) -> Pieces:
        """What a search for pieces [U, H, W] needs of them."""
        height, width = images.shape[1:]
        spectra = torch.fft.rfft2(images, s=(self.side, self.side)).conj()
        return Pieces((height, width), spectra, _inverse_root(images.pow(2).sum((1, 2)), height * width))

    def _scale(self, height: int, width: int) -> Tensor:
        if (height, width) not in self.scales:
            upper, lower = self.sums[:, :, :-height], self.sums[:, :, height:]
            energy = lower[..., width:] - lower[..., :-width] - upper[..., width:] + upper[..., :-width]
            self.scales[height, width] = _inverse_root(energy, height * width)
        return self.scales[height, width]


def _inverse_root(energy: Tensor, pixels: int) -> Tensor:
    return energy.clamp(min=LEAST * pixels).rsqrt()


def back(spectra: Tensor, rows: int, columns: int) -> Tensor:
    """The first rows and columns of an inverse transform of half spectra [..., S, S / 2 + 1], as two small products."""
    side = spectra.shape[-2]
    across, down = _waves(side, rows, columns)
    partly = torch.view_as_real(spectra).flatten(-2) @ across
    return down @ partly.unflatten(-1, (2, columns)).flatten(-3, -2)


@cache
def _waves(side: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Matrices of an inverse transform: [2 * (S / 2 + 1), 2 * columns] and [rows, 2 * S], real and imaginary parts."""
    angle = 2 * math.pi / side
    wide = angle * torch.arange(side // 2 + 1)[:, None] * torch.arange(columns)
    twice = torch.full((side // 2 + 1, 1), 2.0 / side**2)  # what half a spectrum leaves out, but for its two ends
    twice[0] = twice[-1] = 1.0 / side**2
    cosine, sine = twice * wide.cos(), twice * wide.sin()
    across = torch.stack([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)], 1).flatten(0, 1)
    tall = angle * torch.arange(rows)[:, None] * torch.arange(side)
    return across, torch.stack([tall.cos(), -tall.sin()], 2).flatten(1)
