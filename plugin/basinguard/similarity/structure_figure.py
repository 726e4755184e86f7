"""The offline embedder for figures on an empty ground, such as clip art and emoji: the figure is brought to one place.

On an empty ground `structure` sees mostly where the figure ends, and a copy that is shifted or cropped a little ends
elsewhere. Here the box that holds the figure fills the canvas first; everything after that is `structure`. A picture
without an empty ground is seen exactly as `structure` sees it. It stands beside `structure`, not in its place: what a
model re-draws blurs the edges that the box is found by, and an overlay drags it along, so that it misses copies which
`structure` finds. Both sides are measured by `recipes/studies/similarity_table.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.metric import Metric
from .embedder import check_images
from .structure import CANVAS, Structure, structure_vectors, to_canvas

NAME = "structure-figure-v1"
APART = 0.1  # difference of a colour from the ground, in 0..1, from which on it belongs to the figure
EMPTY = 0.5  # share of the border that has one colour: a crop through the figure leaves half of it
TAILS = 0.05  # of the figure's area left outside the box at each end, so that a speck does not decide where it ends
MOSTLY = 0.75  # share of a set on an empty ground from which on it is a set of figures
SAMPLED = 32  # images of a set that decide
SMALLEST = 0.25  # of the canvas: a smaller box is widened, because enlarging it further shows only blur

METRIC = Metric(
    embedder=NAME,
    threshold=0.92,
    source="0.99 quantile (0.919, rounded up) of the best mirror-aware match of a picture against 32 others, n=1413 "
    "emoji, the hardest of three sources (stamps 0.75, n=477; clip art 0.733, n=1743); "
    "recipes/studies/similarity_nulls.py figures. "
    "Other kinds of image need their own null: basinguard.similarity.thresholds",
)


@dataclass(frozen=True)
class StructureFigure(Structure):
    """Embedder without weights for figures on an empty ground; 1153 numbers for an image of any size and shape.

    Example:
        >>> ground = torch.ones(1, 3, 64, 64)
        >>> ball, moved = ground.clone(), ground.clone()
        >>> ball[..., 20:40, 20:40], moved[..., 26:46, 12:32] = 0.2, 0.2
        >>> a, b = StructureFigure()(torch.cat([ball, moved]))
        >>> round(float(a @ b), 2)
        1.0
    """

    metric: Metric = METRIC

    def __call__(self, images: Tensor) -> Tensor:
        """Unit vectors [B, 1153] of images [B, 3, H, W] in [0, 1], each side at least 16 pixels."""
        return structure_vectors(centred(to_canvas(check_images(images))))


def on_empty_ground(images: Tensor) -> Tensor:
    """Whether at least half of an image's border has one colour, [B] bool, for images [B, 3, H, W] in [0, 1]."""
    return _ground(to_canvas(check_images(images)))[1]


def mostly_figures(images: Sequence[Tensor] | Tensor) -> bool:
    """Whether at least three in four of these images [3, H, W] stand on an empty ground."""
    empty = [bool(on_empty_ground(image[None])) for image in images]
    return bool(empty) and sum(empty) >= MOSTLY * len(empty)


def centred(canvas: Tensor) -> Tensor:
    """The figure's box enlarged to the whole canvas, [B, 3, 64, 64]; without an empty ground, bit for bit as given."""
    ground, empty = _ground(canvas)
    difference = F.avg_pool2d(canvas - ground, 3, 1, 1, count_include_pad=False)
    figure = (difference.abs().amax(1) > APART).float()
    (x, width), (y, height) = _extent(figure.sum(1)), _extent(figure.sum(2))
    none = torch.zeros_like(x)
    box = torch.stack([torch.stack([width, none, x], 1), torch.stack([none, height, y], 1)], 1)
    places = F.affine_grid(box, list(canvas.shape), align_corners=False)
    enlarged = F.grid_sample(canvas, places, padding_mode="border", align_corners=False)
    framed = empty & (figure.sum((1, 2)) > 0)
    return torch.where(framed.view(-1, 1, 1, 1), enlarged, canvas)


def _ground(canvas: Tensor) -> tuple[Tensor, Tensor]:
    """The middle colour of the border, [B, 3, 1, 1], and whether enough of the border has it, [B]."""
    cells = F.avg_pool2d(canvas, 2)
    edge = torch.ones(cells.shape[2:], dtype=torch.bool, device=canvas.device)
    edge[1:-1, 1:-1] = False
    border = cells[:, :, edge]
    ground = border.sort(2).values[:, :, border.shape[2] // 2, None]
    alike = ((border - ground).abs().amax(1) < APART).float().mean(1)
    return ground[..., None], alike >= EMPTY


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half width, in -1..1, of what lies between the tails of the figure's area along one axis, [B] each."""
    running = profile @ torch.ones(CANVAS, CANVAS, device=profile.device).triu()
    area = F.pad(running / running[:, -1:].clamp(min=1), (1, 0))
    low, high = _where(area, TAILS), _where(area, 1 - TAILS)
    return (low + high) / 2, ((high - low) / 2).clamp(min=SMALLEST)


def _where(area: Tensor, share: float) -> Tensor:
    """Where a rising curve [B, CANVAS + 1] reaches `share`, between its points by a straight line; in -1..1."""
    after = (area < share).sum(1, keepdim=True).clamp(1, CANVAS)
    left, right = area.gather(1, after - 1), area.gather(1, after)
    return ((after - 1 + (share - left) / (right - left).clamp(min=1e-9)) / (CANVAS / 2) - 1)[:, 0]
