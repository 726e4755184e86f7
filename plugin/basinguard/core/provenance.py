"""Where a checkpoint comes from, as its record says it, and which libraries a result was made with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

VERSIONS = ("basinguard", "torch", "diffusers", "transformers", "peft", "lightning")


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    installed = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from: base id, and hashes of its weights and data set."""

    base: str
    weights_sha256: str
    dataset_sha256: str
    prediction_type: str
    resolution: int
