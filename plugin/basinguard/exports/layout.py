"""Where things lie in an export.

model_index.json, unet/, vae/ ...    a stock pipeline; plain loaders get plain CFG and a warning
scheduler/scheduler_config.json      also holds the record, which so survives a scheduler swap and a re-save
basinguard.json                      the record, with its history
provenance.json                      base, its revision and hash, data set, versions, seeds, config
pipeline.py, basinguard_guidance.py  the rule for people who do not install basinguard
README.md, *.png, samples/           the model card
comfyui_workflow.json                the rule for ComfyUI, where ComfyUI has the model's noise schedule
SHA256SUMS                           of every other file, as `sha256sum --check` reads them

Where the strength of the fine-tune depends on the timestep, base and LoRA lie apart: the pipeline is the base model,
pytorch_lora_weights.safetensors and basinguard_strength.py lie beside the files above, and comfyui/ holds the same LoRA
in the format that ComfyUI reads, by the name that the workflow asks for.

A LoRA or single file holds the record in its header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..core.record import Record

RECORD_FILE, PROVENANCE_FILE, WORKFLOW_FILE = "basinguard.json", "provenance.json", "comfyui_workflow.json"
BASIN_PLOT, HISTORY_PLOT, COMPARISON = "basin.png", "history.png", "comparison.png"
LORA_FILE = "pytorch_lora_weights.safetensors"  # where diffusers' load_lora_weights looks for it
COMFYUI_FOLDER = "comfyui"  # of a LoRA in kohya's format, where its strength depends on the timestep
SCHEDULER_FILE = "scheduler/scheduler_config.json"
RECORD_KEY, NOTICE_KEY = "_basinguard", "basinguard_notice"  # in the scheduler's config; plain loaders print the second
EARLIER_RECORD_KEY = "basinguard"
WRITTEN_FOR = "StableDiffusionPipeline"  # the class that pipeline.py names
CODE = {"pipeline.py": "exports/assets/pipeline.py", "basinguard_guidance.py": "guidance/core.py"}
SCHEDULED_CODE = CODE | {
    "pipeline.py": "exports/assets/scheduled_pipeline.py",
    "basinguard_strength.py": "guidance/strength.py",
}
HEADER_RECORD = "basinguard.record"
HEADER_RECORD_SHA256, HEADER_LORA_SHA256 = "basinguard.record_sha256", "basinguard.lora_sha256"
HEADER_STRENGTH = "basinguard.calibration.strength"  # share of the trained LoRA that a file has as its strength 1
HEADER_TENSORS_SHA256 = "basinguard.tensors_sha256"  # of all tensors as they are stored


def code_for(pipeline: str, *, scheduled: bool = False) -> dict[str, bytes]:
    """The code in an export, by file, for a pipeline of this class of diffusers: `pipeline.py` derives from it.

    Args:
        pipeline: diffusers' name of the class.
        scheduled: of a LoRA whose strength depends on the timestep.
    """
    own = files("basinguard")
    source = {name: own.joinpath(path).read_bytes() for name, path in (SCHEDULED_CODE if scheduled else CODE).items()}
    return {name: code.replace(WRITTEN_FOR.encode(), pipeline.encode()) for name, code in source.items()}


def record_in(config: Mapping[str, Any]) -> Any:
    """The record's text in a scheduler's config; None where it carries none."""
    return config.get(RECORD_KEY, config.get(EARLIER_RECORD_KEY))


def lora_apart(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is that of an export whose LoRA lies beside its pipeline, which is the base model.

    That is so where the record has a `strength_schedule`. A record that cannot be read says nothing of the kind.
    """
    try:
        return json.loads(str(record_in(config)))["product"]["strength_schedule"] is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def without_history(record: Record) -> Record:
    """The record as it goes where tools print or re-read it at every load."""
    return record.model_copy(update={"history": ()})
