"""`basinguard export MODEL RECORD OUT`: writes a pipeline, or a LoRA, with its record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class WorkflowOptions:
    """What a ComfyUI workflow draws, and what it samples with.

    Attributes:
        prompt: what to draw.
        steps: sampling steps of the workflow; those of the calibration by default.
        sampler: ComfyUI's name of the sampler.
        scheduler: ComfyUI's name of the scheduler.
    """

    prompt: str = "your prompt"
    steps: int | None = None
    sampler: str = "euler"
    scheduler: str = "simple"


@dataclass(frozen=True)
class StoredOptions:
    """What a file holds.

    Attributes:
        strength: share of the trained strength that a LoRA file has at strength 1; by default the record's own, or
            the one that it promises to be safe with plain CFG, and all of it where there is none.
        precision: of the weights in a single file.
    """

    strength: float | None = None
    precision: Literal["float16", "float32"] = "float16"


WORKFLOW, STORED = WorkflowOptions(), StoredOptions()


@dataclass(frozen=True)
class Exported:
    """Where an export is: what was written, the address of the upload if there was one, and what else to know."""

    path: Path
    url: str = ""
    note: str = ""

    def __str__(self) -> str:
        return self.url or "\n".join(filter(None, [f"written: {self.path}", self.note]))


def export(
    model: str,
    record: Path,
    out: Path,
    kind: Literal["directory", "single-file", "kohya", "diffusers", "diffusers-folded", "comfyui"] = "directory",
    lora: Path | None = None,
    stored: StoredOptions = STORED,
    workflow: WorkflowOptions = WORKFLOW,
    overwrite: bool = False,
    share_private: bool = False,
    push_to: str | None = None,
) -> Exported:
    """Writes a model together with its record: a directory, one file, a LoRA file, or a ComfyUI workflow.

    Args:
        model: a directory or hub id of a pipeline of Stable Diffusion 1, 2 or XL; of 3 for a directory alone.
        record: the calibration's JSON file.
        out: a directory, a `.safetensors` file for a LoRA or a whole model, a `.json` file for a workflow.
        kind: `directory`, `single-file` (a whole model in the layout of ComfyUI, A1111 and Forge), `kohya` or
            `diffusers` (a LoRA in that format), `diffusers-folded` (the same for diffusers that read no alpha),
            `comfyui` (a workflow that loads model and LoRA by their names).
        lora: a LoRA file to put on the model first; it is merged into a directory or single file, but lies apart in the
            directory where the record's strength depends on the timestep. Such a directory given as the model has its
            own.
        stored: what a file holds.
        workflow: what a ComfyUI workflow samples with.
        overwrite: replace an earlier export.
        share_private: also write local paths and error texts.
        push_to: hub id to upload the result to, as a private repository; nothing is uploaded without it.

    Raises:
        FileExistsError: there is an earlier export and `overwrite` was not asked for.
        FileNotFoundError: no such model, record or LoRA.
        ValueError: the record belongs to another model, or a file is not what it should be.
    """
    from ..core.files import whole_file
    from ..core.record import read_record
    from ..exports.comfyui import WorkflowFiles, comfyui_workflow
    from ..exports.directory import export_directory
    from ..exports.hub import push_to_hub
    from ..exports.lora import export_lora
    from ..exports.merge import merged
    from ..exports.provenance import read_origin
    from ..exports.single_file import export_single_file
    from ..pipelines.loading import load_pipeline, require_capability
    from ..pipelines.loading_messages import quiet_loading
    from ..pipelines.lora_apart import unmerged_lora
    from ..pipelines.product import with_product_weights

    measured = read_record(record)
    if kind == "comfyui":
        files = WorkflowFiles.of(model, lora)
        with whole_file(out, overwrite=overwrite) as partial:
            form = comfyui_workflow(measured, files=files, **asdict(workflow))
            partial.write_text(json.dumps(form, indent=2), "utf-8")
        return Exported(out, note=f"it loads {files.places()}, below ComfyUI")
    require_capability(model, "exportable")
    pipe = load_pipeline(model, lora=lora or unmerged_lora(model))
    private, strength, precision = share_private, stored.strength, stored.precision
    if kind == "directory":
        origin = read_origin(Path(model), measured.weights_sha256)
        whole = merged(pipe) if measured.product.strength_schedule is None else pipe
        with with_product_weights(whole, measured), quiet_loading():
            export_directory(whole, measured, out, origin=origin, overwrite=overwrite, share_private=private)
    elif kind == "single-file":
        whole = merged(pipe)
        with with_product_weights(whole, measured):
            export_single_file(whole, measured, out, precision=precision, overwrite=overwrite, share_private=private)
    else:
        export_lora(pipe, measured, out, format=kind, strength=strength, overwrite=overwrite, share_private=private)
    return Exported(out, push_to_hub(out, push_to) if push_to else "")
