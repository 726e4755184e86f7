"""What a verification samples, as a command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VerificationOptions:
    """What a verification samples.

    Attributes:
        rules: JSON file of named rules to compare; the record's own rule by default.
        per_caption: seeds for each caption.
        paraphrase: also sample reworded captions by the record's rule.
        prompts: text file of prompts, one a line, that were not trained on; also sampled by the record's rule.

    Raises:
        ValueError: no seed.
    """

    rules: Path | None = None
    per_caption: int = 4
    paraphrase: bool = False
    prompts: Path | None = None

    def __post_init__(self) -> None:
        if self.per_caption < 1:
            raise ValueError(f"per_caption={self.per_caption}: expected at least 1")
