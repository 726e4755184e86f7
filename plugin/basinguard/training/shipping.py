"""The last step of a guarded run: calibrate what was trained and export it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..calibration.candidate import RuleCandidate
from ..calibration.record_builder import certify
from ..calibration.strength import safe_strength, strengths
from ..calibration.terms import CalibrationTerms
from ..core import seeds as seed_table
from ..core.provenance import Provenance
from ..core.record import Record, Strength
from ..exports.directory import export_directory
from ..exports.fingerprints import dataset_sha256, weights_sha256
from ..exports.provenance import Origin
from ..guard.guard import Guard
from ..guidance.core import from_record
from ..pipelines.interpolation import Blend
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import TINYWORLD, load_pipeline, locate, model_file
from ..pipelines.stock_sampling import sample_stock
from ..plots.contact_sheet import to_image
from ..similarity.clip_score import ClipScore

SHOWN = 4  # generated samples in the card


def ship(
    guard: Guard, pl_module: Any, terms: CalibrationTerms, out: Path, *, dtype: torch.dtype | None = None
) -> tuple[Record, list[RuleCandidate]]:
    """Calibrates a fine-tuned module and writes the guarded checkpoint to `out`.

    Args:
        guard: knows the training images.
        pl_module: has `export_pipeline()`, `base_id` and the `pipe` in training.
        terms: what is to be promised.
        out: directory to write; an earlier export there is replaced only once the new one is complete.
        dtype: precision of the calibration runs.

    Returns:
        The record that was written, and every candidate that was tried.
    """
    pipe = pl_module.export_pipeline()
    model = LatentModel(pipe, dtype=dtype)
    provenance = Provenance(
        base=str(pl_module.base_id),
        weights_sha256=weights_sha256(pipe),
        dataset_sha256=dataset_sha256(guard.training.images, guard.training.captions),
        prediction_type=model.prediction_type,
        resolution=model.resolution,
    )
    anchored = LatentModel(pl_module.pipe, dtype=dtype, anchor=True) if terms.anchor else None
    record, tried = certify(guard, model, terms, provenance, anchored=anchored)
    if terms.strengths:
        record = record.model_copy(update={"strength": _strength(guard, pl_module, pipe, terms, dtype)})
    samples, prompts = guarded_samples(guard, pipe, record)
    origin = origin_of(
        str(pl_module.base_id), {**pl_module.hparams, "probe": asdict(guard.plan), "terms": asdict(terms)}
    )
    export_directory(pipe, record, out, overwrite=True, samples=samples, prompts=prompts, origin=origin)
    return record, tried


def _strength(guard: Guard, pl_module: Any, pipe: Any, terms: CalibrationTerms, dtype: torch.dtype | None) -> Strength:
    """The largest share of what was trained that ordinary CFG can take."""
    blend = Blend(pipe, load_pipeline(pl_module.base_id), dtype=dtype)
    kind: Literal["lora", "interpolation"] = "lora" if _has_adapter(pl_module.pipe) else "interpolation"
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
    kept = [k for k, copied in enumerate(guard.is_copy(images).tolist()) if not copied]
    return [to_image(images[k]) for k in kept], [texts[k] for k in kept] if heldout else []


def origin_of(base: str, config: Mapping[str, Any]) -> Origin:
    """Commit and fingerprint of the base model, as far as its files tell, and the settings of the run."""
    folder = model_file(base, "model_index.json").parent
    revision = folder.name if isinstance(locate(base), str) else ""  # the hub's cache has a folder for each commit
    try:
        known = weights_sha256(folder)
    except (FileNotFoundError, ValueError):  # weights in several precisions side by side: which were meant is not known
        known = ""
    return Origin(base_revision=revision, base_sha256=known, config=dict(config))


def alignment_for(base: str, model: str = "auto") -> Callable[[Tensor, Sequence[str]], Tensor] | None:
    """Scores the agreement of images and captions, by open_clip; arguments as in `clip_for`."""
    found = clip_for(base, model)
    return None if found is None else found.score


def subject_of(clip: ClipScore | None, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean cosine of each image with the training images [N, 3, H, W], [B]: how far it shows their subject.

    Raises:
        ValueError: there is no model to look with.

    Source: CLIP-I of Ruiz et al., arXiv 2208.12242, section 4.1.
    """
    if clip is None:
        raise ValueError("fidelity=True needs a model that looks: give alignment an open_clip directory or name")
    wanted = clip.embed_images(images)
    return lambda shown: (clip.embed_images(shown) @ wanted.T).mean(1)


def clip_for(base: str, model: str = "auto") -> ClipScore | None:
    """The open_clip model that looks at images and captions.

    Args:
        base: what is fine-tuned.
        model: an open_clip model directory or name; "auto" takes TinyWorld's own for TinyWorld and none otherwise,
            because any other would have to be downloaded; "none" for none.
    """
    if model == "none" or (model == "auto" and base != TINYWORLD):
        return None
    return ClipScore.load() if model == "auto" else ClipScore.load(model)
