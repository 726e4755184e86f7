"""How a fine-tune is opened, sampled and scored: the options that `calibrate` and `audit` share. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SessionSettings:
    """How a fine-tune is opened, sampled and scored.

    Attributes:
        base: what it was fine-tuned from: a directory or hub id; without it there is no null, no share of the
            fine-tune, and no measure of what was taught.
        lora: a LoRA file on the model, which is then the base.
        caption: of the training images that have none of their own, such as the instance prompt of a DreamBooth.
        scale: of plain CFG, above 1.
        timesteps: sampling steps.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        heldout: folder of captioned images that were not trained on: what was taught is measured on their captions,
            by them; otherwise on recombined captions, by the training images.

    Raises:
        ValueError: a scale that is no guidance, or no sampling step.
    """

    base: str = ""
    lora: Path | None = None
    caption: str = ""
    scale: float = 7.5
    timesteps: int = 20
    alignment: str = "auto"
    heldout: Path | None = None

    def __post_init__(self) -> None:
        if self.scale <= 1:
            raise ValueError(f"scale={self.scale}: plain CFG is above 1; 7.5 is usual")
        if self.timesteps < 1:
            raise ValueError(f"timesteps={self.timesteps}: expected at least 1 sampling step")
