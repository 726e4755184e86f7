"""A model and its training images, session together: what `calibrate`, `audit` and `verify` start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.progress import say
from ..core.provenance import Provenance
from ..core.record import Record, read_record
from ..diffusion.sampling_options import SamplingOptions
from ..exports.fingerprints import dataset_sha256, weights_sha256
from ..exports.integrity import lora_file_sha256
from ..exports.layout import RECORD_FILE
from ..exports.merge import merged
from ..guard.guard import Guard
from ..guard.plan import ProbePlan
from ..pipelines.alignment import clip_for
from ..pipelines.distillation import distillation_note, fitting_plan
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from ..pipelines.lora_apart import require_whole_model, unmerged_lora
from ..pipelines.model_edits import edits_asked_for
from ..pipelines.session_settings import SessionSettings
from ..similarity.clip_score import ClipScore
from ..similarity.copy_detector_settings import RECORDED, CopyDetectorSettings
from ..similarity.detector_loading import fitted_embedder, load_detector, load_recorded
from ..training.control_group import training_set
from ..training.data import ImageFolder
from ..training.finetune_options import ReadingOptions
from ..training.guard_options import ControlGroup

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Session:
    """A fine-tuned model with a guard on its training images.

    Attributes:
        pipe: the stock pipeline.
        model: the same, as the guard sees it.
        guard: knows the training images.
        provenance: what a record says of them.
        files: name of each training image, in the guard's order.
        anchored: the model with the base's unconditional branch; only a LoRA that is not merged has one.
        clip: the model that looks at images and captions, if there is one.
        record: what an exported directory says of itself; None for any other model.
    """

    pipe: DiffusionPipeline
    model: LatentModel
    guard: Guard
    provenance: Provenance
    files: tuple[str, ...]
    anchored: LatentModel | None = None
    clip: ClipScore | None = None
    record: Record | None = None


def open_model(
    model: str,
    data: Path,
    settings: SessionSettings = SessionSettings(),
    detector: CopyDetectorSettings = CopyDetectorSettings(),
    *,
    dtype: torch.dtype | None = None,
    by_record: bool = False,
) -> Session:
    """Loads a fine-tune and the images it was trained on.

    Args:
        model: a diffusers directory or hub id.
        data: folder of captioned training images.
        settings: see there; without a base, an exported directory has the one that its record names.
        detector: what decides that a sample is a copy; an exported directory also has the "recorded" one.
        dtype: precision of the runs.
        by_record: it is sampled as its record says, so an export whose strength depends on the timestep is opened with
            its LoRA unmerged.

    Raises:
        FileNotFoundError: no such model or folder, or no weights of the copy detector.
        ImportError: the copy detector's package is not installed.
        ValueError: a model of another kind, images that cannot be used, or an export whose strength depends on the
            timestep where shares of it are asked for.
    """
    record = _record_of(model)
    if settings.lora is None and not by_record:
        require_whole_model(model)
    unmerged = unmerged_lora(model) if settings.lora is None else None
    embedder = load_recorded(detector, record.metric) if record else load_detector(detector)
    pipe = load_pipeline(model, lora=unmerged or settings.lora)
    anchored, base = None, settings.base
    if settings.lora is not None:
        anchored, base, pipe = LatentModel(pipe, dtype=dtype, anchor=True), base or model, merged(pipe)
    base = base or (record.base if record else "")
    pipe.set_progress_bar_config(disable=True)
    latent_model = LatentModel(pipe, dtype=dtype)
    reading, manifest = ReadingOptions(caption=settings.caption or None), settings.manifest or None
    images = ImageFolder(str(data), manifest=manifest, resolution=latent_model.resolution, reading=reading)
    images.setup("open")
    captions = tuple(caption for _, caption in images.items)
    training = training_set(images, ControlGroup(folder=str(settings.heldout) if settings.heldout else None))
    clip = clip_for(base, settings.alignment, captions)
    if note := distillation_note(pipe):
        say(note)
    sampling = sampling_of(settings, record)
    plan = fitting_plan(pipe, ProbePlan(captions=1, timesteps=sampling.timesteps, scale=sampling.scale))
    edits = edits_asked_for(detector, pipe, training.images)
    embedder = fitted_embedder(detector, embedder, training.images, training.heldout_images, edits)
    guard = Guard(training, embedder, plan, clip.score if clip else None)
    provenance = Provenance(
        base=base,
        weights_sha256=lora_file_sha256(unmerged) if unmerged else weights_sha256(pipe),
        dataset_sha256=dataset_sha256(training.images, captions),
        prediction_type=latent_model.prediction_type,
        resolution=latent_model.resolution,
    )
    return Session(
        pipe,
        latent_model,
        guard,
        provenance,
        tuple(Path(name).name for name, _ in images.items),
        anchored,
        clip,
        record if settings.lora is None else None,
    )


def sampling_of(settings: SessionSettings, record: Record | None) -> SamplingOptions:
    """How a model is sampled: as the settings say, or as its record does where they are the defaults."""
    usual = SamplingOptions()
    if record is None or (settings.timesteps, settings.scale) != (usual.timesteps, usual.scale):
        return settings
    say(f"sampled as the export's record says: {record.sampler.timesteps} steps, scale {record.sampler.scale:g}")
    return SamplingOptions(timesteps=record.sampler.timesteps, scale=record.sampler.scale)


def open_export(
    export: Path,
    data: Path,
    detector: CopyDetectorSettings = RECORDED,
    *,
    alignment: str = "auto",
    manifest: str = "",
) -> tuple[Record, Session]:
    """An exported directory with its record, as the record says it is sampled; see `open_model`.

    Raises:
        FileNotFoundError: no record in the directory.
        ValueError: the record belongs to other weights.
    """
    record = read_record(export / RECORD_FILE)
    sampler = record.sampler
    settings = SessionSettings(
        record.base, manifest=manifest, scale=sampler.scale, timesteps=sampler.timesteps, alignment=alignment
    )
    session = open_model(str(export), data, settings, detector, by_record=True)
    require_same(record, session)
    return record, session


def _record_of(model: str) -> Record | None:
    """What an exported directory says of itself; None for any other model."""
    path = Path(model).expanduser() / RECORD_FILE
    return read_record(path) if path.is_file() else None


def require_same(record: Record, session: Session) -> None:
    """Refuses a record that was made for another model.

    Raises:
        ValueError: both hashes.
    """
    weights = session.provenance.weights_sha256
    if record.weights_sha256 not in ("", weights):
        raise ValueError(
            f"the record was made for weights {record.weights_sha256[:12]}..., these are {weights[:12]}...: give the "
            "model it belongs to, or calibrate this one"
        )
