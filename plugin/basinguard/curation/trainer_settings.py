"""How the curated set will be trained; read by the command line, so nothing is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerSettings:
    """How the set will be trained.

    Attributes:
        repeats: how often an epoch shows an image.
        resolution: training resolution for the trainer configs, in pixels.
    """

    repeats: int = 1
    resolution: int = 768
