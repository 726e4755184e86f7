"""The offline default: structure and colour at several scales, without weights.

An image is seen as its luminance and two opponent colours on coarse grids. The finer grids are band-passed, so that a
change of exposure or tint, which is smooth, hardly counts; the coarsest keeps the layout. Each part is scaled to the
same length, so that more contrast or saturation (what classifier-free guidance adds) changes nothing, and coordinates
are compressed, so that one artefact cannot outvote the rest. How well that works is measured by
`recipes/studies/similarity_table.py`: well on full pictures; where a ground is empty, as in clip art and emoji, the
shipped threshold takes strangers for copies (`thresholds.calibrated` measures another), and crops, shifts and overlays
are often missed: `structure_figure` finds the shifted and cropped ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.metric import Metric
from .embedder import check_images, unit

NAME = "structure-colour-v1"
CANVAS = 64  # pixels on a side; everything finer is left to artefacts, JPEG and blur
BANDS = (16, 8)  # cells on a side of the band-passed grids
LAYOUT = 8  # cells on a side of the grid that keeps the layout
LAYOUT_WEIGHT = 0.5
COMPRESSION = 0.7  # exponent on each coordinate's size
FLOOR = 0.01  # root-mean-square contrast below which a part fades out instead of amplifying noise
FLAT = 0.01  # a constant coordinate: two empty images are the same, and an empty one is like no other

METRIC = Metric(
    embedder=NAME,
    threshold=0.69,
    source="0.999 quantile (0.684 [0.673, 0.695], rounded up) of the best mirror-aware match of a fresh TinyWorld "
    "scene against 32 others, one with the same caption; n=19200 scenes, 200 sets; "
    "recipes/studies/similarity_nulls.py scenes structure. "
    "Other kinds of image need their own null: basinguard.similarity.thresholds",
)


@dataclass(frozen=True)
class Structure:
    """Embedder without weights; 1153 numbers for an image of any size and shape.

    Example:
        >>> image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> a, b = Structure()(torch.cat([image, (image * 0.8).clamp(0, 1)]))
        >>> round(float(a @ b), 2)
        1.0
    """

    metric: Metric = METRIC

    @property
    def name(self) -> str:
        """Embedder and version."""
        return self.metric.embedder

    def __call__(self, images: Tensor) -> Tensor:
        """Unit vectors [B, 1153] of images [B, 3, H, W] in [0, 1], each side at least 16 pixels."""
        return structure_vectors(to_canvas(check_images(images)))


def structure_vectors(canvas: Tensor) -> Tensor:
    """Unit vectors [B, 1153] of images at CANVAS x CANVAS pixels, [B, 3, 64, 64] in [0, 1]."""
    opponent = to_opponent(canvas)
    parts = [structure_band(opponent, cells) for cells in BANDS]
    parts.append(layout(opponent, LAYOUT) * LAYOUT_WEIGHT**0.5)
    flat = torch.full((len(canvas), 1), FLAT, device=canvas.device)
    return unit(torch.cat([*(part.flatten(1) for part in parts), flat], 1))


def to_canvas(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] at CANVAS x CANVAS pixels; the shape is squeezed, as training crops are squeezed back."""
    height, width = images.shape[2:]
    if height % CANVAS == 0 and width % CANVAS == 0:
        return F.avg_pool2d(images, (height // CANVAS, width // CANVAS))
    return F.interpolate(images, (CANVAS, CANVAS), mode="bilinear", antialias=True)


def to_opponent(images: Tensor) -> Tensor:
    """Luminance, red against green, yellow against blue: [B, 3, H, W]."""
    red, green, blue = images.unbind(1)
    return torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1)


def structure_band(opponent: Tensor, cells: int) -> Tensor:
    """What stands out from its surroundings on a grid of `cells` x `cells`, [B, 3, cells, cells]."""
    grid = _apply(gaussian_cells(cells, CANVAS, 0.5), opponent)
    return balance(grid - _apply(gaussian_cells(cells, cells, cells / 8), grid))


def layout(opponent: Tensor, cells: int) -> Tensor:
    """The coarse picture without its mean, [B, 3, cells, cells]."""
    grid = _apply(gaussian_cells(cells, CANVAS, 0.5), opponent)
    return balance(grid - grid.mean((2, 3), keepdim=True))


def balance(grid: Tensor) -> Tensor:
    """Luminance [:, :1] and colour [:, 1:] compressed, each brought to length 1; faint ones fade to 0."""
    return torch.cat([_fading_unit(grid[:, :1]), _fading_unit(grid[:, 1:])], 1)


def _fading_unit(part: Tensor) -> Tensor:
    contrast = part.pow(2).mean((1, 2, 3), keepdim=True)
    fade = (contrast / (contrast + FLOOR**2)).sqrt()
    small = part.sign() * part.abs().pow(COMPRESSION)
    return fade * small / small.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def _apply(rows: Tensor, images: Tensor) -> Tensor:
    """The same weights along both axes: rows @ image @ rows.T."""
    rows = rows.to(images)
    return rows @ images @ rows.T


@cache
def gaussian_cells(cells: int, side: int, width: float) -> Tensor:
    """Gaussian weights of `side` pixels for each of `cells` cells, [cells, side]; `width` in cells."""
    centres = (torch.arange(cells) + 0.5) / cells
    pixels = (torch.arange(side) + 0.5) / side
    weights = torch.exp(-0.5 * ((centres[:, None] - pixels) * cells / width) ** 2)
    return weights / weights.sum(1, keepdim=True)
