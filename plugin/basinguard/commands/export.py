"""`basinguard export MODEL RECORD OUT`: writes a pipeline, or a LoRA, with its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from ..core.record import read_record
from ..exports.comfyui import comfyui_workflow
from ..exports.directory import export_directory
from ..exports.hub import push_to_hub
from ..exports.lora import export_lora
from ..exports.merge import merged
from ..exports.provenance import read_origin
from ..pipelines.loading import load_pipeline


def export(
    model: str,
    record: Path,
    out: Path,
    kind: Literal["directory", "kohya", "diffusers", "comfyui"] = "directory",
    lora: Path | None = None,
    strength: float | None = None,
    steps: int | None = None,
    scheduler: str = "simple",
    overwrite: bool = False,
    share_private: bool = False,
    push_to: str | None = None,
) -> None:
    """Writes a model together with its record; `comfyui` writes a workflow for it instead.

    Args:
        model: a directory or hub id of a Stable Diffusion pipeline.
        record: the calibration's JSON file.
        out: a directory, a `.safetensors` file for a LoRA, a `.json` file for a workflow.
        kind: `directory`, `kohya` or `diffusers` (a LoRA in that format), `comfyui`.
        lora: a LoRA file to put on the model first; it is merged into a directory.
        strength: share of the trained strength that a LoRA file has at strength 1; by default the one that the record
            promises to be safe with ordinary guidance, and all of it where there is none.
        steps: sampling steps of the workflow; those of the calibration by default.
        scheduler: scheduler of the workflow.
        overwrite: replace an earlier export.
        share_private: also write local paths and error texts.
        push_to: hub id to upload the result to, as a private repository; nothing is uploaded without it.
    """
    known = read_record(record)
    if kind == "comfyui":
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out}: exists already; name another file, or pass --overwrite true")
        out.write_text(json.dumps(comfyui_workflow(known, steps=steps, scheduler=scheduler), indent=2), "utf-8")
        return
    pipe = load_pipeline(model)
    if lora is not None:
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="default", local_files_only=True)
    if kind == "directory":
        origin = read_origin(Path(model), known.weights_sha256)
        export_directory(merged(pipe), known, out, overwrite=overwrite, origin=origin, share_private=share_private)
    else:
        export_lora(pipe, known, out, format=kind, strength=strength, overwrite=overwrite, share_private=share_private)
    if push_to:
        print(push_to_hub(out, push_to))
