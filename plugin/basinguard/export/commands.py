"""What `basinguard inspect`, `check` and `export` do; the command line only parses."""

from __future__ import annotations

import json
from pathlib import Path

from ..records import read_record
from .atomic import whole_file
from .check import check as check_export
from .directory import export_directory
from .lora import export_lora
from .reading import inspect_file
from .ui import a1111_prompt, comfyui_workflow


def inspect(path: Path, json_out: bool = False) -> str:
    """Says what an export holds.

    Args:
        path: an exported directory, a record, a scheduler's config or a LoRA file.
        json_out: the record as JSON instead of a summary.
    """
    found = inspect_file(path)
    return found.record.to_json() if json_out else str(found)


def check(path: Path) -> tuple[str, int]:
    """Verifies every hash of an export, and that its record belongs to its weights.

    Args:
        path: an exported directory or LoRA file.

    Returns:
        The outcome in words, and the exit status: 0 when all is right, 1 when something is not.
    """
    outcome = check_export(path)
    return str(outcome), 0 if outcome.ok else 1


def export(
    model: Path,
    record: Path,
    out: Path,
    kind: str = "directory",
    lora: Path | None = None,
    overwrite: bool = False,
    share_private: bool = False,
    push_to: str | None = None,
) -> str:
    """Exports a pipeline, with or without a LoRA, together with its record.

    Args:
        model: a directory (or hub id) of a Stable Diffusion pipeline.
        record: the calibration's JSON file.
        out: where to: a directory, or a `.safetensors` file for a LoRA.
        kind: `directory`, `kohya` or `diffusers`.
        lora: a LoRA file to load into the pipeline first; merged when a directory is exported.
        overwrite: replace an earlier export.
        share_private: also write local paths and error texts.
        push_to: a hub id to upload the finished directory to, as a private repository; never by default.
    """
    if kind not in ("directory", "kohya", "diffusers"):
        raise ValueError(f"export(kind={kind!r}): expected 'directory', 'kohya' or 'diffusers'")
    from ..adapters.diffusers import read_pipeline

    known, pipe = read_record(record), read_pipeline(model, lora)
    if kind == "directory":
        from .merge import merged

        export_directory(merged(pipe), known, out, overwrite=overwrite, share_private=share_private)
    else:
        export_lora(pipe, known, out, format=kind, overwrite=overwrite, share_private=share_private)  # type: ignore[arg-type]
    uploaded = f", uploaded to {push_to}" if push_to and push(out, push_to) else ""
    return f"{out}: written{uploaded}"
