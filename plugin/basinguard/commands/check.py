"""`basinguard check DIR`: is an export what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..exports.integrity import Check


def check(path: Path) -> Check:
    """Verifies every hash of an export, and that its record belongs to its weights; exit status 1 if not.

    Args:
        path: an exported directory or LoRA file.
    """
    from ..exports.integrity import check_export

    return check_export(path)
