"""TODO one line."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

VERSIONS = ("basinguard", "torch", "diffusers", "transformers", "peft", "lightning")


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
