"""What says "same image", and what it said about one sample."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .schema import Finite, Schema


class Match(Schema):
    """The training image nearest to one sample: its index, the similarity (1 = same), and whether it was mirrored."""

    index: Annotated[int, Field(ge=0)]
    similarity: Finite
    mirrored: bool = False


class Metric(Schema):
    """What says "same image": a threshold belongs to one embedder with one preprocessing, and to no other."""

    embedder: Annotated[str, Field(max_length=200)]
    threshold: Finite
    source: Annotated[str, Field(max_length=500)]
