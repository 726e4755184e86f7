"""What a guarded run leaves: a calibrated checkpoint with its rule, and beside it the epoch for plain CFG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from ..calibration.candidate import RuleCandidate
from ..calibration.record_builder import certify
from ..calibration.strength import safe_strength, strengths
from ..calibration.terms import CalibrationTerms
from ..core import seeds as seed_table
from ..core.files import whole_directory
from ..core.provenance import Provenance
from ..core.record import Record, Strength
from ..exports.client_files import save_stock
from ..exports.directory import export_directory, write_sums
from ..exports.fingerprints import dataset_sha256, weights_sha256
from ..exports.privacy import forget_origins
from ..exports.provenance import Origin
from ..guard.checkpoint_selection import Choice
from ..guard.guard import Guard
from ..guidance.core import from_record
from ..pipelines.interpolation import Blend
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline, locate, model_file
from ..pipelines.stock_sampling import sample_stock
from ..plots.contact_sheet import to_image
from .protocols import TrainedModule

SHOWN = 4  # generated samples in the card
CHOICE_FILE = "basinguard-choice.json"
PLAIN_CARD = """# The epoch that plain CFG may sample

Epoch {epoch} (update {train_step}) of a guarded run, a stock diffusers pipeline without any rule. {why}.

Measured on training captions with plain CFG while training; no promise was calibrated. The guarded checkpoint of the
same run lies beside this directory.
"""


def export_calibrated(
    guard: Guard, module: TrainedModule, terms: CalibrationTerms, out: Path, *, dtype: torch.dtype | None = None
) -> tuple[Record, list[RuleCandidate]]:
    """Calibrates a fine-tuned module and writes the guarded checkpoint to `out`.

    Args:
        guard: knows the training images.
        module: what is exported, with the weights it holds.
        terms: what is to be promised.
        out: directory to write; an earlier export there is replaced only once the new one is complete.
        dtype: precision of the calibration runs.

    Returns:
        The record that was written, and every candidate that was tried.
    """
    pipe, base = module.export_pipeline(), str(module.base_id)
    model = LatentModel(pipe, dtype=dtype)
    provenance = Provenance(
        base=base,
        weights_sha256=weights_sha256(pipe),
        dataset_sha256=dataset_sha256(guard.training.images, guard.training.captions),
        prediction_type=model.prediction_type,
        resolution=model.resolution,
    )
    anchored = LatentModel(module.pipe, dtype=dtype, anchor=True) if terms.anchor else None
    record, candidates = certify(guard, model, terms, provenance, anchored=anchored)
    if terms.strengths:
        record = record.model_copy(update={"strength": _strength(guard, module, pipe, terms, dtype)})
    samples, prompts = guarded_samples(guard, pipe, record)
    settings = {**getattr(module, "hparams", {}), "probe": asdict(guard.plan), "terms": asdict(terms)}
    origin = origin_of(base, settings)
    export_directory(pipe, record, out, overwrite=True, samples=samples, prompts=prompts, origin=origin)
    return record, candidates


def export_plain(module: TrainedModule, choice: Choice, out: Path) -> None:
    """Writes the module's weights as a stock pipeline with the reasons for their epoch, whole or not at all.

    Raises:
        FileExistsError: `out` holds files that no export wrote.
    """
    pipe = module.export_pipeline()
    with whole_directory(out, overwrite=True) as folder:
        save_stock(pipe, folder)
        forget_origins(folder)
        (folder / CHOICE_FILE).write_text(json.dumps(choice.model_dump(), indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(PLAIN_CARD.format(**choice.model_dump()), encoding="utf-8")
        write_sums(folder)


def plain_directory(out: Path) -> Path:
    """Where the epoch for plain CFG goes: beside the guarded export."""
    return out.with_name(f"{out.name}-plain")


def _strength(
    guard: Guard, module: TrainedModule, pipe: Any, terms: CalibrationTerms, dtype: torch.dtype | None
) -> Strength:
    """The largest share of what was trained that plain CFG can take."""
    blend = Blend(pipe, load_pipeline(module.base_id), dtype=dtype)
    kind: Literal["lora", "interpolation"] = "lora" if _has_adapter(module.pipe) else "interpolation"
    return safe_strength(list(strengths(guard, blend.at, terms)), kind, terms)


def _has_adapter(pipe: Any) -> bool:
    return bool(getattr(pipe.unet, "peft_config", None))


def guarded_samples(guard: Guard, pipe: Any, record: Record) -> tuple[list[Image.Image], list[str]]:
    """A few pictures for the card, drawn as people will draw them, and their prompts.

    Held-out prompts if there are any; training captions otherwise, which are then not told. Never a picture that
    reproduces a training image.
    """
    heldout = list(guard.training.heldout[:SHOWN])
    texts = heldout or list(guard.training.captions[:SHOWN])
    seeds, rule = range(seed_table.CARD, seed_table.CARD + len(texts)), from_record(record.model_dump())
    sampler = record.sampler
    images = sample_stock(pipe, texts, seeds, rule, scale=sampler.scale, timesteps=sampler.timesteps).images
    fresh = [k for k, copied in enumerate(guard.is_copy(images).tolist()) if not copied]
    return [to_image(images[k]) for k in fresh], [texts[k] for k in fresh] if heldout else []


def origin_of(base: str, config: Mapping[str, Any]) -> Origin:
    """Commit and fingerprint of the base model, as far as its files tell, and the settings of the run."""
    folder = model_file(base, "model_index.json").parent
    revision = folder.name if isinstance(locate(base), str) else ""  # the hub's cache has a folder for each commit
    try:
        sha256 = weights_sha256(folder)
    except (FileNotFoundError, ValueError):  # weights in several precisions side by side: which were meant is not known
        sha256 = ""
    return Origin(base_revision=revision, base_sha256=sha256, config=dict(config))
