"""Exports whose LoRA lies apart from the pipeline, since its strength follows the timestep: opened plainly, such a
directory is the base model, and nothing that is measured of it is of the fine-tune.
"""

from __future__ import annotations

from pathlib import Path

from ..exports.layout import LORA_FILE, SCHEDULER_FILE, lora_apart
from .loading import model_config, model_file


def has_lora_apart(model: str | Path) -> bool:
    """Whether a directory or hub id is such an export, by its scheduler's config alone."""
    try:
        return lora_apart(model_config(model, SCHEDULER_FILE))
    except FileNotFoundError:  # of what cannot be opened at all, the loader tells more
        return False


def unmerged_lora(model: str | Path) -> Path | None:
    """The LoRA of such an export; None of any other model.

    Raises:
        FileNotFoundError: it is not there.
    """
    return model_file(model, LORA_FILE) if has_lora_apart(model) else None


def require_whole_model(model: str | Path) -> None:
    """Refuses such an export where a model is to be opened with its fine-tune in it.

    Raises:
        ValueError: says what to give instead.
    """
    if has_lora_apart(model):
        raise ValueError(
            f"{model}: the strength of its LoRA depends on the timestep, so its pipeline is the base model and the "
            f"LoRA lies beside it in {LORA_FILE}; `verify` measures both together, and the base model with --lora "
            "and that file is the whole LoRA"
        )
