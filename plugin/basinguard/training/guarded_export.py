"""What a guarded run leaves: the product that keeps the promise with the most of what was taught, and its record."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..calibration.candidate import Product as Chosen
from ..calibration.knobs import knobs_text
from ..calibration.lessons import TaughtTruth, truth_of
from ..calibration.record_builder import Certificate, certify
from ..calibration.sample_archive import SampleArchive
from ..calibration.terms import CalibrationTerms
from ..calibration.trial import Trial, calibration_pairs
from ..calibration.weights import OpenWeights, product_weights
from ..core import seeds as seed_table
from ..core.images import to_tensor
from ..core.progress import say
from ..core.provenance import Provenance
from ..core.record import Record
from ..core.recorded_weights import RecordedWeights
from ..diffusion.model import Model
from ..exports.directory import CardPictures, export_directory
from ..exports.fingerprints import dataset_sha256, weights_sha256
from ..exports.lora import lora_layers
from ..exports.lora_formats import lora_sha256
from ..exports.provenance import Origin
from ..exports.sentences import percent, verdict
from ..guard.guard import Guard
from ..guard.taught_ledger import through_vae
from ..guidance.core import from_record
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import locate, model_file
from ..pipelines.loading_messages import quiet_loading
from ..pipelines.stock_sampling import sample_stock
from ..plots.contact_sheet import contact_sheet, to_image
from ..similarity.detail import look_at
from .epoch_series import EpochSeries, has_adapter

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SHOWN = 6  # held-out prompts in the card
LOOKED_AT = 32  # training images beside which samples are looked at
BLANK = 0.9  # grey of a picture that copies and is not shown


def export_calibrated(
    guard: Guard,
    series: EpochSeries,
    terms: CalibrationTerms,
    out: Path,
    *,
    truth: TaughtTruth | None = None,
    data: str = "DATA",
) -> Certificate:
    """Calibrates the epochs of a fine-tune and writes the product that was chosen to `out`.

    Where that has a rule and some product of plain CFG was proven too, that one goes beside it, for plain loaders. What
    is drawn lies beside it too until all is written, so that a calibration that was stopped goes on with the run.

    Args:
        guard: knows the training images.
        series: the epochs, with their module.
        terms: what is to be promised.
        out: directory to write; an earlier export there is replaced only once the new one is complete.
        truth: what was taught.
        data: how the next command is told of the training images.

    Returns:
        The certificate; its record is the one that was written.
    """
    provenance, archive = provenance_of(guard, series), archive_beside(guard, series, out)
    certificate = certify(guard, series, terms, provenance, truth=truth, archive=archive)
    say(f"ships: {certificate.shipped}")
    if line := knobs_text(certificate.tried, terms.alpha, guard.plan.guidance_scale):
        say(line)
    comparison = compare_in_pictures(guard, series, certificate)
    record = write_product(guard, series, terms, certificate.record, out, comparison)
    say(f"{verdict(record)} Risk {percent(record.risk)}.")
    command = f"basinguard verify {shlex.quote(str(out))} {data}"
    say(f"written to {out}: its README.md says what was measured; next: {command}")
    if certificate.safe_record is not None:
        write_product(guard, series, terms, certificate.safe_record, plain_directory(out), comparison)
    archive.clear()
    return replace(certificate, record=record)


def provenance_of(guard: Guard, series: EpochSeries) -> Provenance:
    """What is known of the model before a product is chosen; its own fingerprint comes with the weights."""
    with series.at(series.epochs[-1], 1.0) as opened:
        pipe = pipe_of(opened.model)
        model = LatentModel(pipe)
        return Provenance(
            base=str(series.module.base_id),
            weights_sha256="",
            dataset_sha256=dataset_sha256(guard.training.images, guard.training.captions),
            prediction_type=model.prediction_type,
            resolution=model.resolution,
        )


def archive_beside(guard: Guard, series: EpochSeries, out: Path) -> SampleArchive:
    """Where a calibration keeps what it draws while it works; known by the newest weights and the epochs before."""
    with series.at(series.epochs[-1], 1.0) as opened:
        newest = weights_sha256(pipe_of(opened.model))
    run = f"{newest} {sorted(series.train_steps.items())} {series.module.base_id} {guard.plan}"
    return SampleArchive(out.with_name(f"{out.name}-samples"), run)


def pipe_of(model: Model) -> Any:
    """The pipeline that a series opened."""
    assert isinstance(model, LatentModel)
    return model.pipe


def plain_directory(out: Path) -> Path:
    """Where the product for plain loaders goes: beside the guarded export."""
    return out.with_name(f"{out.name}-plain")


def write_product(
    guard: Guard, series: EpochSeries, terms: CalibrationTerms, record: Record, out: Path, comparison: Image.Image
) -> Record:
    """Writes one product, with the weights of its epoch at its strength, and its pictures.

    Args:
        guard: knows the training images.
        series: the epochs.
        terms: what was promised.
        record: of the product.
        out: directory to write, see `export_calibrated`.
        comparison: for the card.

    Returns:
        The record that was written.
    """
    product = _with_origin(series, record.product)
    with product_weights(series, product) as opened, _shipped_pipe(series, product, opened) as pipe:
        record = record.model_copy(update={"product": product, "weights_sha256": _fingerprint(product, pipe)})
        samples, prompts = guarded_samples(guard, pipe, record)
        settings = {**getattr(series.module, "hparams", {}), "probe": asdict(guard.plan), "terms": asdict(terms)}
        warning = _looked_at(opened.model, samples, guard.training.images)
        if warning:
            say(f"{out}: {warning}; its card says so")
        pictures = CardPictures(samples, prompts, comparison, warning)
        with quiet_loading():
            export_directory(
                pipe, record, out, overwrite=True, pictures=pictures, origin=origin_of(record.base, settings)
            )
    return record


@contextmanager
def _shipped_pipe(series: EpochSeries, product: RecordedWeights, opened: OpenWeights) -> Iterator[Any]:
    """What is written of a product: its pipeline, whose LoRA is unmerged where its strength follows the timestep."""
    if product.strength_schedule is None:
        yield pipe_of(opened.model)
        return
    with series.unmerged(product.epoch) as pipe:
        yield pipe


def _fingerprint(product: RecordedWeights, pipe: Any) -> str:
    return weights_sha256(pipe) if product.strength_schedule is None else lora_sha256(lora_layers(pipe))


@torch.no_grad()
def _looked_at(model: Model, samples: Sequence[Image.Image], truth: Tensor) -> str:
    """What is wrong with samples beside training images that went through the model's own VAE, which blurs both."""
    if not samples:
        return ""
    return look_at(torch.stack([*map(to_tensor, samples)]), through_vae(model, truth[:LOOKED_AT]))


def _with_origin(series: EpochSeries, product: RecordedWeights) -> RecordedWeights:
    """The product with what its run knows of it."""
    tuned = ""
    if not product.whole:
        with series.at(product.epoch, 1.0) as opened:
            tuned = weights_sha256(pipe_of(opened.model))
    step = None if product.epoch is None else series.train_steps.get(product.epoch)
    kind = "lora" if has_adapter(series.module) else "interpolation"
    return product.model_copy(update={"kind": kind, "train_step": step, "tuned_sha256": tuned})


def compare_in_pictures(guard: Guard, series: EpochSeries, certificate: Certificate) -> Image.Image:
    """Base model, plain CFG and product on the same held-out prompts and noise: the price, for the eye.

    Copies of training images are blanked out.
    """
    prompts = truth_of(guard.training, ()).prompts[:SHOWN]
    plain = certificate.plain.product
    ways = {"plain CFG without a guard": plain, "this product": certificate.shipped.product}
    ways = {**({"base model": replace(plain, strength=0.0)} if series.graded else {}), **ways}
    columns = {title: _drawn(guard, series, product, prompts) for title, product in ways.items()}
    return contact_sheet(columns, [""] * len(prompts) if guard.training.stand_in else prompts, {})


@torch.no_grad()
def _drawn(guard: Guard, series: EpochSeries, product: Chosen, prompts: Sequence[str]) -> Tensor:
    with product_weights(series, product) as opened:
        model = opened.model
        pairs = calibration_pairs(len(prompts), len(prompts), model.latent_shape, seed_table.CARD)
        images = model.decode(Trial(guard.guided_model(model, prompts), pairs).sample(product.guidance)[0])
    return torch.where(guard.is_copy(images)[:, None, None, None], torch.full_like(images, BLANK), images)


def guarded_samples(guard: Guard, pipe: StableDiffusionPipeline, record: Record) -> tuple[list[Image.Image], list[str]]:
    """A few pictures for the card, drawn as people will draw them, and their prompts.

    Held-out prompts if there are any; stand-ins or training captions otherwise, which are then not told. Never a
    picture that reproduces a training image.
    """
    heldout = [] if guard.training.stand_in else list(guard.training.heldout[:SHOWN])
    texts = heldout or list(guard.training.captions[:SHOWN])
    seeds, scheduled = (
        range(seed_table.CARD, seed_table.CARD + len(texts)),
        record.product.strength_schedule is not None,
    )
    rule = record if scheduled else from_record(record.model_dump())
    images = sample_stock(pipe, texts, seeds, rule, guard.plan).images
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
