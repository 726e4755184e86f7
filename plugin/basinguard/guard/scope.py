"""What one measurement covers, what it found for every caption and image, and how that compares with the base."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..basin.gap import Alarm, raise_alarm
from ..core import stats
from ..core.estimate import Estimate


@dataclass
class Table:
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


@dataclass(frozen=True)
class Scope:
    """What one measurement covers.

    Attributes:
        sampled: training images whose captions are sampled; none is allowed.
        gaps: training images whose captions' gap is measured.
        seeds: samples of each sampled caption.
        resolution: grid positions an exit may be left open by; 0 looks for no exits.
        heldout: also measure the gap of held-out prompts.
        scales: also measure the critical scales that the plan asks for.
        thorough: also sample held-out captions, whatever it costs.
        precision: what the budget bought, in words.
    """

    sampled: tuple[int, ...]
    gaps: tuple[int, ...]
    seeds: int
    resolution: int = 1
    heldout: bool = True
    scales: bool = True
    thorough: bool = True
    precision: str = ""


def since(now: dict[int, float], base: dict[int, float]) -> Estimate | None:
    """Mean rise of what was measured in both models; None where nothing was."""
    rise = {i: value - base[i] for i, value in now.items() if i in base}
    return stats.cluster_bootstrap(list(rise.values()), list(rise)) if rise else None


def alarm_of(
    now: dict[int, float], base: dict[int, float], heldout: dict[int, float], heldout_base: dict[int, float]
) -> Alarm | None:
    """The comparison of what was measured in both models; None where a side is missing."""
    kept, twins = [i for i in now if i in base], [i for i in heldout if i in heldout_base]
    if not kept or not twins:
        return None
    return raise_alarm(
        *(torch.tensor([values[i] for i in kept]) for values in (now, base)),
        *(torch.tensor([values[i] for i in twins]) for values in (heldout, heldout_base)),
    )
