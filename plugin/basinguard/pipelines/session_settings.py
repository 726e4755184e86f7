"""How a fine-tune is opened, sampled and scored: the options that `calibrate` and `audit` share. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..diffusion.sampling_options import SamplingOptions


@dataclass(frozen=True)
class SessionSettings(SamplingOptions):
    """How a fine-tune is opened and scored, and how it is sampled: see `SamplingOptions`.

    Attributes:
        base: what it was fine-tuned from: a directory or hub id; without it there is no null, no share of the
            fine-tune, and no measure of what was taught.
        lora: a LoRA file on the model, which is then the base.
        caption: of the training images that have none of their own, such as the instance prompt of a DreamBooth.
        manifest: a curated manifest of the training images, by its name in their folder or its path: they are those
            that it keeps.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        heldout: folder of captioned images that were not trained on: what was taught is measured on their captions,
            by them; otherwise on recombined captions, by the training images.
    """

    base: str = ""
    lora: Path | None = None
    caption: str = ""
    manifest: str = ""
    alignment: str = "auto"
    heldout: Path | None = None
