"""What one measurement found for every caption and image, and how that compares with the base model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..basin.heldout_contrast import HeldoutContrast, contrast_with_heldout
from ..core import stats
from ..core.estimate import Estimate


@dataclass
class Measures:
    """What one measurement found for every caption and image; plain numbers, so it can be saved.

    The base model's is the null that every later one is compared with.

    Attributes:
        gaps, heldout: gap of every training and every held-out caption.
        sigma_c, heldout_sigma_c: log critical scale, with the caption, of images by their index.
    """

    gaps: dict[int, float] = field(default_factory=dict)
    heldout: dict[int, float] = field(default_factory=dict)
    sigma_c: dict[int, float] = field(default_factory=dict)
    heldout_sigma_c: dict[int, float] = field(default_factory=dict)


def mean_rise(now: dict[int, float], base: dict[int, float]) -> Estimate | None:
    """Mean rise of what was measured in both models; None where nothing was."""
    rise = {i: value - base[i] for i, value in now.items() if i in base}
    return stats.cluster_bootstrap(list(rise.values()), list(rise)) if rise else None


def compare_rises(
    now: dict[int, float], base: dict[int, float], heldout: dict[int, float], heldout_base: dict[int, float]
) -> HeldoutContrast | None:
    """The comparison of what was measured in both models; None where a side is missing."""
    train, control = [i for i in now if i in base], [i for i in heldout if i in heldout_base]
    if not train or not control:
        return None
    return contrast_with_heldout(
        *(torch.tensor([values[i] for i in train]) for values in (now, base)),
        *(torch.tensor([values[i] for i in control]) for values in (heldout, heldout_base)),
    )
