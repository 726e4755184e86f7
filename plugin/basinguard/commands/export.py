"""`basinguard export MODEL RECORD OUT`: writes a pipeline, or a LoRA, with its record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class WorkflowOptions:
    """What a ComfyUI workflow samples with.

    Attributes:
        steps: sampling steps of the workflow; those of the calibration by default.
        scheduler: ComfyUI's name of the scheduler.
    """

    steps: int | None = None
    scheduler: str = "simple"


WORKFLOW = WorkflowOptions()


@dataclass(frozen=True)
class Exported:
    """Where an export is: what was written, and the address of the upload if there was one."""

    path: Path
    url: str = ""

    def __str__(self) -> str:
        return self.url or f"written: {self.path}"


def export(
    model: str,
    record: Path,
    out: Path,
    kind: Literal["directory", "kohya", "diffusers", "comfyui"] = "directory",
    lora: Path | None = None,
    strength: float | None = None,
    workflow: WorkflowOptions = WORKFLOW,
    overwrite: bool = False,
    share_private: bool = False,
    push_to: str | None = None,
) -> Exported:
    """Writes a model together with its record: a directory, a LoRA file, or a ComfyUI workflow.

    Args:
        model: a directory or hub id of a Stable Diffusion pipeline.
        record: the calibration's JSON file.
        out: a directory, a `.safetensors` file for a LoRA, a `.json` file for a workflow.
        kind: `directory`, `kohya` or `diffusers` (a LoRA in that format), `comfyui`.
        lora: a LoRA file to put on the model first; it is merged into a directory.
        strength: share of the trained strength that a LoRA file has at strength 1; by default the record's own, or
            the one that it promises to be safe with plain CFG, and all of it where there is none.
        workflow: what a ComfyUI workflow samples with.
        overwrite: replace an earlier export.
        share_private: also write local paths and error texts.
        push_to: hub id to upload the result to, as a private repository; nothing is uploaded without it.

    Raises:
        FileExistsError: there is an earlier export and `overwrite` was not asked for.
        FileNotFoundError: no such model, record or LoRA.
        ValueError: the record belongs to another model, or a file is not what it should be.
    """
    from ..core.record import read_record
    from ..exports.comfyui import comfyui_workflow
    from ..exports.directory import export_directory
    from ..exports.hub import push_to_hub
    from ..exports.lora import export_lora
    from ..exports.merge import merged
    from ..exports.provenance import read_origin
    from ..pipelines.loading import load_pipeline
    from ..pipelines.product import with_product_weights

    measured = read_record(record)
    if kind == "comfyui":
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out}: exists already; name another file, or pass --overwrite true")
        out.write_text(json.dumps(comfyui_workflow(measured, **asdict(workflow)), indent=2), "utf-8")
        return Exported(out)
    pipe = load_pipeline(model, lora=lora)
    if kind == "directory":
        origin, whole = read_origin(Path(model), measured.weights_sha256), merged(pipe)
        with with_product_weights(whole, measured):
            export_directory(whole, measured, out, overwrite=overwrite, origin=origin, share_private=share_private)
    else:
        export_lora(
            pipe, measured, out, format=kind, strength=strength, overwrite=overwrite, share_private=share_private
        )
    return Exported(out, push_to_hub(out, push_to) if push_to else "")
