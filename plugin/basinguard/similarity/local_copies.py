"""Which part of a sample is copied? Verbatim copies and template copies are told apart, and shown.

Sample and match are laid over each other and compared window by window: the correlation of luminance and colour inside
a window (of luminance alone where one image is gray), the best over small shifts, so that neither exposure nor
saturation counts. Windows that correlate more than unrelated images do are copied. Almost all: verbatim. A connected
part, the rest different: template (the fixed background of a product photo, say).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .embedder import check_images
from .structure import to_opponent

SIDE = 64  # pixels on a side at which images are compared
WINDOW = 16
STRIDE = 4
SHIFT = 2  # pixels in each direction
FLAT = 0.04  # windows with less contrast (root-mean-square, after smoothing) than this in both images cannot tell
GRAY = 0.005  # mean size of the opponent colours below which an image counts as gray
COPIED = 0.80  # correlation above which a window is copied; its null is in recipes/results/similarity_table.json
VERBATIM = 0.75  # share of telling windows
TEMPLATE = 0.25


@dataclass(frozen=True)
class SharedRegion:
    """What a sample shares with its match.

    Attributes:
        kind: "verbatim", "template" or "none".
        share: copied windows among those that can tell (have contrast in either image), 0 when none can.
        windows: how many can tell.
        mask: 1 where copied, NaN where nothing can be told, 0 elsewhere, [windows, windows].
    """

    kind: Literal["verbatim", "template", "none"]
    share: float
    windows: int
    mask: Tensor


def compare_locally(sample: Tensor, match: Tensor, *, mirrored: bool = False) -> SharedRegion:
    """Which windows of `sample` are copied from `match`.

    Args:
        sample, match: images [3, H, W] in [0, 1]; sizes may differ.
        mirrored: the match was found mirrored (`Match.mirrored`).

    Returns:
        The kind of copy, the share and the mask. The kind is "none" when fewer than a quarter of the windows agree.
    """
    correlation, telling = window_correlation(sample[None], (match.flip(-1) if mirrored else match)[None])
    copied = (correlation > COPIED) & telling
    windows = int(telling.sum())
    share = float(copied.sum()) / windows if windows else 0.0
    mask = torch.where(telling, copied.float(), torch.nan)[0]
    return SharedRegion(kind=_kind(share, copied[0]), share=share, windows=windows, mask=mask)


def window_correlation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation inside each window, the best over shifts of up to 2 pixels, and which windows can tell.

    Args:
        a, b: images [B, 3, H, W] in [0, 1].

    Returns:
        Correlations [B, n, n] in -1..1, and whether either image has contrast there, [B, n, n].
    """
    x, y = _comparable(*(to_opponent(_resized(check_images(images))) for images in (a, b)))
    wide = F.pad(y, (SHIFT,) * 4, mode="replicate")
    spread_x = _spread(x, x)
    telling = torch.maximum(spread_x, _spread(y, y)) > FLAT**2
    best = torch.full_like(spread_x, -1.0)
    for top in range(2 * SHIFT + 1):
        for left in range(2 * SHIFT + 1):
            shifted = wide[..., top : top + SIDE, left : left + SIDE]
            spread_y = _spread(shifted, shifted)
            scale = (spread_x.clamp(min=FLAT**2) * spread_y.clamp(min=FLAT**2)).sqrt()
            best = torch.maximum(best, _spread(x, shifted) / scale)
    return best.clamp(-1, 1), telling


def mark_copied(sample: Tensor, copied: SharedRegion) -> Tensor:
    """The sample with what no copied window covers greyed out and the copied part framed in red, [3, H, W]."""
    height, width = sample.shape[1:]
    windows = torch.nan_to_num(copied.mask, nan=0.0)[None, None]
    covered = (F.conv_transpose2d(windows, torch.ones(1, 1, WINDOW, WINDOW), stride=STRIDE) > 0).float()
    weight = F.interpolate(covered, (height, width), mode="nearest")[0]
    grey = sample.mean(0, keepdim=True).expand_as(sample) * 0.5 + 0.25
    picture = weight * sample + (1 - weight) * grey
    thick = max(1, height // 128)
    edge = (F.max_pool2d(weight, 2 * thick + 1, 1, thick) - weight) > 0
    return torch.where(edge, torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1), picture)


def _kind(share: float, copied: Tensor) -> Literal["verbatim", "template", "none"]:
    if share >= VERBATIM:
        return "verbatim"
    return "template" if share >= TEMPLATE and largest_region(copied) >= TEMPLATE / 2 else "none"


def largest_region(copied: Tensor) -> float:
    """Share of the whole that the largest connected part of a mask [n, n] covers."""
    from scipy import ndimage

    labels, count = ndimage.label(copied.numpy())
    return (
        float(ndimage.sum_labels(copied.numpy(), labels, range(1, count + 1)).max() / copied.numel()) if count else 0.0
    )


def _comparable(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Without colour where either image has none: a gray copy is a copy."""
    colour = torch.minimum(*(image[:, 1:].abs().mean((1, 2, 3)) for image in (x, y))) > GRAY
    keep = torch.stack([torch.ones_like(colour), colour, colour], 1).to(x)[..., None, None]
    return x * keep, y * keep


def _resized(images: Tensor) -> Tensor:
    """At SIDE pixels and smoothed, so that noise is not taken for content that differs."""
    x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    for _ in range(2):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return x


def _spread(x: Tensor, y: Tensor) -> Tensor:
    """Covariance inside each window, summed over channels, [B, n, n]."""
    pool = (WINDOW, STRIDE)
    product = F.avg_pool2d(x * y, *pool) - F.avg_pool2d(x, *pool) * F.avg_pool2d(y, *pool)
    return product.sum(1)
