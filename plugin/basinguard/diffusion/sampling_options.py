"""How images are sampled, wherever that can be set; read by the command line, so nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How images are sampled.

    Attributes:
        timesteps: sampling steps.
        scale: guidance scale of plain CFG, above 1.

    Raises:
        ValueError: a scale that is no guidance, or no sampling step.
    """

    timesteps: int = 20
    scale: float = 7.5

    def __post_init__(self) -> None:
        if not self.scale > 1:
            raise ValueError(f"scale={self.scale}: plain CFG is above 1; 7.5 is usual")
        if self.timesteps < 1:
            raise ValueError(f"timesteps={self.timesteps}: expected at least 1 sampling step")
