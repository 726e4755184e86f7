"""Which copy detector is meant, in plain words: what a configuration or a command line says. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

AUTO = "auto"
Null = Literal["published", "neighbours", "heldout", "recorded"]


@dataclass(frozen=True)
class CopyDetectorSettings:
    """What decides that an image is a copy; the same in every command and adapter.

    Args:
        embedder: what turns images into vectors. Without weights: "structure", "structure-figure" (for figures on an
            empty ground), "aligned" (lays pictures over each other). With: "sscd" (of the extra basinguard[sscd]),
            "sscd_disc_mixup_320=FILE" and the other SSCD protocols (a state dict or ONNX), "timm/MODEL=FILE",
            "clip=FOLDER", "clip/MODEL=TAG-OR-FILE". Or "recorded": what the model's record names, found again by name
            and hash. Or "auto": of those installed, or two of them together, what finds most edited copies of your own
            images, at 1 % false positives, which also sets the threshold.
        threshold: similarity from which on an image is a copy: a number, the embedder's "published" one, the
            "recorded" one, or measured where nothing is copied: on "neighbours" (training images among each other) or
            on "heldout" images.

    Raises:
        ValueError: an unknown kind of threshold, or "auto" with one.
    """

    embedder: str = "structure"
    threshold: Null | float = "published"

    def __post_init__(self) -> None:
        if self.embedder == AUTO and self.threshold != "published":
            raise ValueError(f"embedder='auto' sets the threshold itself; leave out threshold={self.threshold!r}")
        if isinstance(self.threshold, str) and self.threshold not in get_args(Null):
            raise ValueError(
                f"threshold={self.threshold!r}: expected one of {', '.join(get_args(Null))}, or a number in (0, 1]"
            )
        if not isinstance(self.threshold, str) and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: expected a similarity in (0, 1]")


RECORDED = CopyDetectorSettings("recorded", "recorded")
