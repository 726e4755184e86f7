"""A record put into the header of a LoRA that somebody else's trainer wrote: its tensors and its own header stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..core.files import whole_file
from ..core.record import Record
from ..core.safetensors_header import read_entries, read_header
from .fingerprints import weights_sha256
from .layout import HEADER_TENSORS_SHA256
from .lora_header import record_rows, usage_hint
from .model_kind import STABLE_DIFFUSION, ModelKind
from .privacy import public

HINT = "modelspec.usage_hint"  # the one field of the trainer's that a stamp replaces: it is about sampling


def stamp_lora(
    lora: str | Path,
    record: Record,
    out: str | Path,
    *,
    overwrite: bool = False,
    share_private: bool = False,
    kind: ModelKind = STABLE_DIFFUSION,
) -> Path:
    """Copies a LoRA file with a record in its header; not a byte of its tensors is touched.

    Whether the record belongs to this LoRA is for the caller to know: it takes the base model to tell.

    Args:
        lora: a `.safetensors` file.
        record: the calibration of the base with this LoRA at strength 1.
        out: the file to write; `lora` itself with `overwrite`.
        overwrite: replace an existing file.
        share_private: also write local paths and error texts.
        kind: of the base model.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False.
        ValueError: not a safetensors file.
    """
    lora, out = Path(lora).expanduser(), Path(out).expanduser()
    own = read_header(lora).metadata
    shown = record if share_private else public(record)
    rows = record_rows(shown) | {HEADER_TENSORS_SHA256: weights_sha256(lora), HINT: usage_hint(shown, kind=kind)}
    with whole_file(out, overwrite=overwrite) as partial:
        _with_header(lora, partial, {**own, **rows})
    return out


def _with_header(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Source: https://github.com/huggingface/safetensors#format; a header's length is a multiple of 8."""
    with source.open("rb") as old, target.open("wb") as new:
        entries = read_entries(old)
        entries["__metadata__"] = dict(metadata)
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        new.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(old, new)
