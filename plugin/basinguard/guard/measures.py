"""What one measurement found for every caption and image, and how that compares with the base model."""

from __future__ import annotations

from collections.abc import Sequence
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


def mean_rise(now: dict[int, float], base: dict[int, float], first: Sequence[int] | None = None) -> Estimate | None:
    """Mean rise of what was measured in both models; None where nothing was.

    Args:
        now, base: by index.
        first: of every index, the first one that stands for the same caption; those belong together.
    """
    rise = {i: value - base[i] for i, value in now.items() if i in base}
    return stats.cluster_bootstrap(list(rise.values()), [first[i] if first else i for i in rise]) if rise else None


def compare_rises(
    now: dict[int, float],
    base: dict[int, float],
    heldout: dict[int, float],
    heldout_base: dict[int, float],
    first: Sequence[int] | None = None,
) -> HeldoutContrast | None:
    """The comparison of what was measured in both models; None where a side is missing.

    Args:
        now, base: of training captions or images, by index.
        heldout, heldout_base: of the control group.
        first: of every index, the first one that stands for the same caption: those count once, by their mean.
    """
    train, control = [i for i in now if i in base], [i for i in heldout if i in heldout_base]
    if not train or not control:
        return None
    same: dict[int, list[int]] = {}
    for i in train:
        same.setdefault(first[i] if first else i, []).append(i)
    return contrast_with_heldout(
        *(torch.tensor([_mean(values, group) for group in same.values()]) for values in (now, base)),
        *(torch.tensor([values[i] for i in control]) for values in (heldout, heldout_base)),
    )


def _mean(values: dict[int, float], group: Sequence[int]) -> float:
    return sum(values[i] for i in group) / len(group)
