"""Which libraries a result was made with."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

VERSIONS = ("basinguard", "torch", "diffusers", "transformers", "peft", "lightning")


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    installed = {}
    for name in VERSIONS:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
