"""A checkpoint as a directory: every loader takes it, and it carries its record, its rule and its model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..core.files import SUMS, file_sha256, whole_directory
from ..core.record import Record
from ..guidance.core import from_record
from ..guidance.strength import scalable_layers
from . import card_plots as plots
from .client_files import save_stock
from .comfyui import WorkflowFiles, comfyui_workflow
from .fingerprints import belonging, weights_sha256
from .layout import (
    COMFYUI_FOLDER,
    COMPARISON,
    LORA_FILE,
    NOTICE_KEY,
    PROVENANCE_FILE,
    RECORD_FILE,
    RECORD_KEY,
    SCHEDULER_FILE,
    WORKFLOW_FILE,
    code_for,
    without_history,
)
from .lora import export_lora, lora_layers, of_lora
from .lora_formats import lora_sha256
from .merge import without_adapters
from .model_card import write_card
from .model_kind import ModelKind, kind_of
from .privacy import forget_origins, public, write_json
from .provenance import Origin, provenance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NOTICE = (
    "A plain load does NOT sample this checkpoint as it was measured against copying its training images: "
    "load it with basinguard.load(...), or as its README.md says."
)


@dataclass(frozen=True)
class CardPictures:
    """Generated pictures for a card, never training images.

    Attributes:
        samples: of the product.
        prompts: one for each; leave them out where they are training captions.
        comparison: base model, plain CFG and product side by side on held-out prompts.
        warning: what is wrong with the samples to look at, in words.

    Raises:
        ValueError: prompts that are not one a sample.
    """

    samples: Sequence[Image.Image] = ()
    prompts: Sequence[str] = ()
    comparison: Image.Image | None = None
    warning: str = ""

    def __post_init__(self) -> None:
        if self.prompts and len(self.prompts) != len(self.samples):
            raise ValueError(
                f"{len(self.samples)} samples and {len(self.prompts)} prompts: give one prompt a sample, or none"
            )


def export_directory(
    pipe: DiffusionPipeline,
    record: Record,
    out: str | Path,
    *,
    overwrite: bool = False,
    pictures: CardPictures = CardPictures(),
    origin: Origin | None = None,
    share_private: bool = False,
) -> Path:
    """Writes a pipeline with its record, whole or not at all; `layout` says what lies where.

    Args:
        pipe: a diffusers pipeline of a class in `model_kind.KINDS`, without adapters; see `merge.merged`. Where the
            record has a `strength_schedule`, with its LoRA unmerged: base and LoRA then lie apart in the directory.
        record: the calibration of exactly these weights; an empty `weights_sha256` is filled in.
        out: the directory to make.
        overwrite: replace an earlier export there; a directory with anybody else's files is never replaced.
        pictures: for the card.
        origin: what the record does not say of where the model comes from; goes to `provenance.json`.
        share_private: also write local paths and error texts.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` is not free; see `overwrite`.
        TypeError: a pipeline of another class.
        ValueError: the record belongs to other weights or another prediction type, its rule is more than a pipeline
            can do, or the pipeline has adapters.
    """
    out = Path(out).expanduser()
    schedule = record.product.strength_schedule
    kind = check_exportable(pipe, unmerged=schedule is not None)
    from_record(record.model_dump())  # what cannot be sampled by must not be shipped
    if schedule is None:
        record = belonging(record, weights_sha256(pipe), kind.prediction_type(pipe.scheduler))
    else:
        record = _of_schedulable_lora(record, pipe, kind)
    with whole_directory(out, overwrite=overwrite) as folder:
        save_stock(pipe if schedule is None else without_adapters(pipe), folder)
        _draw_at_calibrated_size(folder / kind.denoiser, record.sampler.resolution, pipe.vae_scale_factor)
        if not share_private:
            record = public(record)
            forget_origins(folder)
        _write_record(folder, record, kind)
        if schedule is not None:
            export_lora(pipe, record, folder / LORA_FILE, format="diffusers", strength=1.0, share_private=share_private)
        origin = origin or Origin()
        write_json(folder / PROVENANCE_FILE, provenance(record, origin, share_private=share_private))
        name = out.resolve().name
        if not kind.flow:
            files = WorkflowFiles(directory=name, lora=f"{name}.safetensors" if schedule else None, kind=kind)
            if _write_workflow(folder, record, files) and files.lora:
                lora = folder / COMFYUI_FOLDER / files.lora
                export_lora(pipe, record, lora, strength=1.0, share_private=share_private)
        for file, code in code_for(kind.pipeline, scheduled=schedule is not None).items():
            (folder / file).write_bytes(code)
        shown = [*plots.write_plots(folder, record), *_write_pictures(folder, pictures)]
        write_card(
            folder,
            record,
            name=name,
            pictures=shown,
            prompts=pictures.prompts,
            origin=origin.rows(),
            warning=pictures.warning,
            kind=kind,
        )
        write_sums(folder)
    return out


def check_exportable(pipe: DiffusionPipeline, *, unmerged: bool = False) -> ModelKind:
    """Refuses what would not load again as a stock pipeline, adapters too unless asked for; returns its kind."""
    kind = kind_of(pipe)
    if missing := [name for name in kind.parts if getattr(pipe, name) is None]:
        raise ValueError(
            f"the pipeline has no {missing[0]}, so nothing can be drawn from a prompt; give the whole model"
        )
    for name, module in pipe.components.items():
        if getattr(module, "peft_config", None) and not unmerged:
            raise ValueError(
                f"{name} carries LoRA adapters ({', '.join(module.peft_config)}): merge them first with "
                "basinguard.exports.merge.merged(pipe), or export the LoRA alone"
            )
    return kind


def _of_schedulable_lora(record: Record, pipe: DiffusionPipeline, kind: ModelKind) -> Record:
    """The record with the fingerprint of its LoRA, whose strength can follow the timestep; refused where it cannot."""
    if kind.flow:
        raise ValueError(
            f"no directory with an unmerged LoRA of {kind.name} is written here; give the record to basinguard.protect "
            "with the base and its LoRA loaded (load_lora_weights)"
        )
    scalable_layers(getattr(pipe, kind.denoiser))
    layers = lora_layers(pipe)
    of_lora(record, pipe, layers)
    return record.model_copy(update={"weights_sha256": lora_sha256(layers)})


def _draw_at_calibrated_size(folder: Path, resolution: int, pixels: int) -> None:
    """A pipeline draws at its denoiser's own size unless told: now that of the record, whatever the base's was."""
    config = folder / "config.json"
    write_json(config, json.loads(config.read_text("utf-8")) | {"sample_size": resolution // pixels})


def _write_record(folder: Path, record: Record, kind: ModelKind) -> None:
    (folder / RECORD_FILE).write_text(record.to_json() + "\n", encoding="utf-8")
    scheduler, index = folder / SCHEDULER_FILE, folder / "model_index.json"
    config = json.loads(scheduler.read_text("utf-8"))
    notice = {} if record.needs_nothing else {NOTICE_KEY: NOTICE}
    write_json(scheduler, config | notice | {RECORD_KEY: without_history(record).model_dump_json()})
    write_json(index, json.loads(index.read_text("utf-8")) | {"_class_name": kind.pipeline})


def _write_workflow(folder: Path, record: Record, files: WorkflowFiles) -> bool:
    """Writes the workflow, where one can follow the record; the card says why there is none."""
    try:
        form = comfyui_workflow(record, files=files)
    except ValueError:
        return False
    write_json(folder / WORKFLOW_FILE, form)
    return True


def _write_pictures(folder: Path, pictures: CardPictures) -> list[str]:
    """Pixels only: whatever else a PNG can carry stays behind."""
    named = {f"samples/{number:02}.png": sample for number, sample in enumerate(pictures.samples)}
    if pictures.comparison is not None:
        named[COMPARISON] = pictures.comparison
    for name, picture in named.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = picture.convert("RGB")
        Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(folder / name)
    return list(named)


def write_sums(folder: Path) -> None:
    """Writes `SHA256SUMS` for every file below `folder`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = (f"{file_sha256(folder / name)}  {name}\n" for name in names if name != SUMS)
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
