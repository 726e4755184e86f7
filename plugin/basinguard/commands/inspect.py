"""`basinguard inspect FILE`: what an export says of itself."""

from __future__ import annotations

from pathlib import Path


def inspect(path: Path, json: bool = False) -> str:
    """Says what an export tells of itself: its rule, how sure its numbers are, where it comes from.

    Args:
        path: an exported directory, a record, a scheduler's config or a LoRA file.
        json: the record as JSON instead of a summary.
    """
    from ..exports.inspect import inspect_file

    inspection = inspect_file(path)
    return inspection.record.to_json() if json else str(inspection)
