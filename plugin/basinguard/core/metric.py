"""What says "same image", and what it said about one sample."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .estimate import Estimate
from .schema import Finite, Schema


class Match(Schema):
    """The training image nearest to one sample: its index, the similarity (1 = same), and whether it was mirrored."""

    index: Annotated[int, Field(ge=0)]
    similarity: Finite
    mirrored: bool = False


class Metric(Schema):
    """What says "same image": a threshold belongs to one embedder with one preprocessing, and to no other.

    Attributes:
        embedder: name, weights and version.
        threshold: similarity from which on an image is a copy.
        source: where the threshold comes from.
        recalls: share of edited copies that it found, by edit, where that was measured on the images at hand.
    """

    embedder: Annotated[str, Field(max_length=200)]
    threshold: Finite
    source: Annotated[str, Field(max_length=500)]
    recalls: dict[Annotated[str, Field(max_length=60)], Estimate] = Field(default_factory=dict)

    @property
    def definition(self) -> str:
        """What a copy is, for people: stands under every table of copies."""
        misses = f"; {self.expected_misses}" if self.recalls else ""
        return f"a copy is {self.embedder} of at least {self.threshold:.4g} ({self.source}){misses}"

    @property
    def kind(self) -> str:
        """Where the threshold comes from, in a word or two: "auto", "given", "measured" or "published"."""
        if self.source.startswith("auto:") or self.source == "given":
            return self.source.partition(":")[0]
        return "measured" if self.source.startswith(("null ", "the owner's")) else "published"

    @property
    def expected_misses(self) -> str:
        """What it is expected to miss, worst first, in words; empty where that was not measured."""
        missed = sorted((e.value, name) for name, e in self.recalls.items() if e.value < 1)
        listed = ", ".join(_missed(name, self.recalls[name]) for _, name in missed)
        if not self.recalls:
            return ""
        return f"of edited copies of the training images it misses {listed or 'none that was tried'}"


def _missed(edit: str, recall: Estimate) -> str:
    return f"{recall.complement().percent(0)} of {edit}"
