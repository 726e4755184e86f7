"""Where a checkpoint comes from: what is needed to make it again, without what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ..core.record import Record
from ..core.schema import MAX_BYTES
from .layout import PROVENANCE_FILE


@dataclass(frozen=True)
class Origin:
    """What a record does not say of where its model comes from; `core.provenance.Provenance` is what it does say.

    Attributes:
        base_revision: commit of the base model on the Hub.
        base_sha256: fingerprint of the base model's weights, see `fingerprints.weights_sha256`.
        config: the training run's settings; paths in it are cut to their last name unless private things are shared.
    """

    base_revision: str = ""
    base_sha256: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Rows for the model card: what is known."""
        rows = [("base revision", self.base_revision), ("base weights (SHA-256)", self.base_sha256)]
        return [(name, value) for name, value in rows if value]


def provenance(record: Record, origin: Origin, *, share_private: bool = False) -> dict[str, Any]:
    """The content of `provenance.json`."""
    return {
        "base": {"id": record.base, "revision": origin.base_revision, "weights_sha256": origin.base_sha256},
        "weights_sha256": record.weights_sha256,
        "dataset_sha256": record.dataset_sha256,
        "versions": record.versions,
        "seeds": list(record.seeds),
        "config": dict(origin.config) if share_private else without_paths(dict(origin.config)),
    }


def read_origin(folder: Path, weights_sha256: str) -> Origin:
    """What an earlier export of these very weights says of their origin; nothing where there is none.

    Args:
        folder: a directory with or without a `provenance.json`.
        weights_sha256: of the weights whose origin is asked for.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return Origin()
    try:
        written = json.loads(path.read_bytes()[:MAX_BYTES])
        if written["weights_sha256"] != weights_sha256:
            return Origin()
        return Origin(str(written["base"]["revision"]), str(written["base"]["weights_sha256"]), dict(written["config"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a provenance that basinguard wrote ({repr(error)[:200]}); remove it to go on"
        ) from None


def without_paths(value: Any) -> Any:
    """`value` with every path in it, at any depth, cut to its last name.

    Example:
        >>> without_paths({"root": "/home/alice/cats", "lr": 0.1, "base": "owner/name"})
        {'root': 'cats', 'lr': 0.1, 'base': 'owner/name'}
    """
    if isinstance(value, Mapping):
        return {str(key): without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if isinstance(value, PurePath):
        return value.name
    return _last_name(value) if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    if len(text) > 4096 or "\n" in text or not ("/" in text or "\\" in text):
        return False
    return text.startswith(("/", "~", ".", "\\")) or text[1:3] in (":\\", ":/") or Path(text).exists()


def _last_name(text: str) -> str:
    return PurePath(text.replace("\\", "/")).name
