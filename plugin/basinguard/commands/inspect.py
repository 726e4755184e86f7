"""`basinguard inspect FILE`: what an export says of itself."""

from __future__ import annotations

from pathlib import Path


def inspect(path: Path, json: bool = False) -> str:
    """Says what an export tells of itself: its rule, how sure its numbers are, where it comes from.

    Of a LoRA, whoever trained it, also its layers, its base, and the command that audits it.

    Args:
        path: an exported directory, a record, a scheduler's config or any LoRA file.
        json: the record as JSON instead of a summary.
    """
    from ..exports.inspect import describe_file, inspect_file

    return inspect_file(path).record.to_json() if json else describe_file(path)
