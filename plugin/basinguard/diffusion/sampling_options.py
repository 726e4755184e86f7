"""How images are sampled, wherever that can be set; read by the command line, so nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

USUAL_SCALE = 7.5  # of Stable Diffusion 1 and 2


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How images are sampled.

    Attributes:
        timesteps: sampling steps.
        scale: guidance scale of plain CFG, above 1; where none is given, what is usual for the family of the model: 7.5
            for Stable Diffusion 1 and 2, 5 for SDXL, 7 for SD 3, 4 for Flux.2 klein, 6 for Z-Image (5 in its pipeline,
            which counts from 1 less).

    Raises:
        ValueError: a scale that is no guidance, or no sampling step.
    """

    timesteps: int = 20
    scale: float | None = None

    @property
    def guidance_scale(self) -> float:
        """The scale; where none is given and no family is known, that of Stable Diffusion 1 and 2."""
        return USUAL_SCALE if self.scale is None else self.scale

    def __post_init__(self) -> None:
        if not self.guidance_scale > 1:
            raise ValueError(f"scale={self.scale}: plain CFG is above 1; 7.5 is usual")
        if self.timesteps < 1:
            raise ValueError(f"timesteps={self.timesteps}: expected at least 1 sampling step")
