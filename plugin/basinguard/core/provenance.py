"""Where a checkpoint comes from, as its record says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: base id, and hashes of its weights and data set."""

    base: str
    weights_sha256: str
    dataset_sha256: str
    prediction_type: str
    resolution: int
