"""What `basinguard inspect` and `basinguard check` do; the command line only parses."""

from __future__ import annotations

from pathlib import Path

from ..exports.inspect import inspect_file
from ..exports.integrity import check as check_export


def inspect(path: Path, json: bool = False) -> None:
    """Prints what an export says of itself: its rule, how sure its numbers are, where it comes from.

    Args:
        path: an exported directory, a record, a scheduler's config or a LoRA file.
        json: the record as JSON instead of a summary.
    """
    found = inspect_file(path)
    print(found.record.to_json() if json else found)


def check(path: Path) -> None:
    """Verifies every hash of an export, and that its record belongs to its weights; exit status 1 if not.

    Args:
        path: an exported directory or LoRA file.
    """
    outcome = check_export(path)
    print(outcome)
    if not outcome.ok:
        raise SystemExit(1)
