"""What one measurement covers, and what it found for every caption and image."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        scales: also measure the critical scales that the plan asks for.
        thorough: also sample held-out captions, whatever it costs.
        precision: what the budget bought, in words.
    """

    sampled: tuple[int, ...]
    gaps: tuple[int, ...]
    seeds: int
    resolution: int = 1
    scales: bool = True
    thorough: bool = True
    precision: str = ""
