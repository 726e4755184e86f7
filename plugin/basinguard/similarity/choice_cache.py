"""What "auto" chose, kept by content, so that the same images under the same detectors are not judged twice.

A folder of small JSON files in the user's cache (`$BASINGUARD_CACHE`, else `$XDG_CACHE_HOME/basinguard`, else
`~/.cache/basinguard`; an empty variable keeps nothing). They hold names, thresholds and recalls, no image. A file that
is damaged is ignored, and a folder that cannot be written is no error: the choice is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ..core.files import write_bytes
from ..core.metric import Metric
from ..core.schema import MAX_BYTES, Schema

METHOD = "2"  # of choosing and of the edits; another one makes everything that is kept another's


class ComparedDetectors(Schema):
    """Every detector that was compared, with threshold and recalls, the chosen one first."""

    rows: tuple[Metric, ...]


def content_key(images: Sequence[Tensor | None], words: Sequence[str]) -> str:
    """One name for images [N, 3, H, W] and for the words that say what is done with them, as hexadecimal digits."""
    digest = hashlib.sha256(METHOD.encode())
    for batch in images:
        digest.update(b"none" if batch is None else repr(tuple(batch.shape)).encode())
        if batch is not None:
            digest.update(batch.detach().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps(list(words)).encode())
    return digest.hexdigest()


def remembered(key: str) -> ComparedDetectors | None:
    """What is kept under a key; None where that is nothing."""
    path = _path(key)
    with suppress(OSError, ValueError):
        return ComparedDetectors.from_json(path.read_bytes()[: MAX_BYTES + 1]) if path else None
    return None


def store_choice(key: str, choice: ComparedDetectors) -> None:
    """Keeps a choice where the folder can be written."""
    path = _path(key)
    if path is not None:
        with suppress(OSError):
            write_bytes(path, choice.to_json().encode())


def _path(key: str) -> Path | None:
    named = os.environ.get("BASINGUARD_CACHE")
    if named == "":
        return None
    home = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "basinguard"
    return home.expanduser() / "detectors" / f"{key}.json"
