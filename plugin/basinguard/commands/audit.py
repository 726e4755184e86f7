"""`basinguard audit MODEL --data DIR`: does it copy, which images, and what would make it safe? Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..audits.findings import Audit, advise, rank
from ..audits.findings import text as as_text
from ..audits.page import render_page
from ..basin.trajectories import Pairs, run_trunk
from ..calibration.terms import CalibrationTerms
from ..calibration.trial import calibration_pairs
from ..core import seeds as seed_table
from ..core import stats
from ..core.estimate import Estimate
from ..diffusion.model import Model
from ..guard.guard import Guard
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from ..plots.tradeoff import frontier_figure, quality_figure, strength_figure
from .calibrate import Calibration, calibrate_opened, require_promisable
from .calibrate import write as write_calibration
from .quality_reference import plain_samples, quality_for
from .session import Opened, open_model

PAGE, FINDINGS = "audit.html", "audit.json"


@dataclass(frozen=True)
class Audited:
    """An audit with what its page shows."""

    audit: Audit
    calibration: Calibration
    training: Tensor
    samples: Tensor

    def __str__(self) -> str:
        return as_text(self.audit)


@torch.no_grad()
def audit(
    model: str,
    data: Path,
    *,
    base: str = "",
    lora: Path | None = None,
    per_caption: int = 4,
    terms: CalibrationTerms | None = None,
    scale: float = 7.5,
    timesteps: int = 20,
    alignment: str = "auto",
    heldout: Path | None = None,
    out: Path | None = None,
) -> Audited:
    """Looks for copies under ordinary guidance, and calibrates what would make the model safe.

    Args:
        model: a diffusers directory or hub id.
        data: folder of the captioned images it was trained on.
        base: what it was fine-tuned from; without it there is no null and no safe strength.
        lora: a LoRA file on `model`, which is then the base.
        per_caption: samples of each caption that are searched for copies.
        terms: of the promise, see `calibrate`.
        scale: of ordinary guidance.
        timesteps: sampling steps.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        heldout: folder of like images that were not trained on, to measure quality by, see `calibrate`.
        out: new folder for `audit.html`, `audit.json` and the calibration; nothing is written without it.

    Raises:
        FileExistsError: `out` holds an audit already.
        FileNotFoundError: no such model or folder.
        ValueError: a number out of range, or too few pairs for any promise.
    """
    terms = terms or CalibrationTerms()
    if per_caption < 1:
        raise ValueError(f"per_caption={per_caption}: expected at least 1")
    require_promisable(terms, out)
    if out is not None and (out / PAGE).exists():
        raise FileExistsError(f"{out / PAGE}: exists already; name another folder")
    opened = open_model(model, data, base=base, lora=lora, scale=scale, timesteps=timesteps, alignment=alignment)
    calibration = calibrate_opened(opened, terms, quality=quality_for(opened, terms.pairs, heldout))
    found = audit_opened(model, opened, calibration, per_caption)
    if out is not None:
        write(found, out)
    return found


@torch.no_grad()
def audit_opened(model: str, opened: Opened, calibration: Calibration, per_caption: int) -> Audited:
    """Looks for copies in a model that is open and calibrated already; see `audit`."""
    guard, captions = opened.guard, opened.guard.training.captions
    pairs = calibration_pairs(
        len(captions), per_caption * len(captions), opened.model.latent_shape, first_seed=seed_table.AUDIT
    )
    prompt, threshold = pairs.prompt.tolist(), guard.embedder.metric.threshold
    samples = plain_samples(guard, opened.model, pairs)
    matches = guard.matches(samples)
    images = rank(matches, prompt, opened.files, captions, threshold)
    plain = stats.rate([match.similarity >= threshold for match in matches], prompt)
    uncond, null = _without_prompt(guard, opened.model, pairs), _null(opened, pairs)
    record = calibration.record
    audit = Audit(
        model=model,
        samples=len(pairs),
        plain=plain,
        uncond=uncond,
        base=null,
        images=tuple(images),
        images_total=len(captions),
        record=record,
        advice=advise(plain, uncond, null, images, len(captions), record),
    )
    return Audited(audit, calibration, guard.training.images, samples)


def write(found: Audited, out: Path) -> None:
    """Writes the page, the findings, and the calibration's own files."""
    write_calibration(found.calibration, out)
    page = render_page(found.audit, found.training, found.samples, _figures(found.calibration))
    (out / PAGE).write_text(page, encoding="utf-8")
    (out / FINDINGS).write_text(found.audit.to_json() + "\n", encoding="utf-8")


def _figures(calibration: Calibration) -> dict[str, Figure]:
    figures = {"Rules: what each copies, and what it keeps of the caption": frontier_figure(
        calibration.tried, calibration.record
    )}  # fmt: skip
    if calibration.record.quality:
        figures["Rules: quality against agreement with the caption"] = quality_figure(
            calibration.tried, calibration.record
        )
    if calibration.strengths:
        title = "Ordinary guidance at lower strengths of the fine-tune"
        figures[title] = strength_figure(calibration.strengths, calibration.record.alpha)
    return figures


def _without_prompt(guard: Guard, model: Model, pairs: Pairs) -> Estimate:
    """Does the empty prompt alone reproduce training images?"""
    states = run_trunk(guard.guided_model(model, guard.training.captions), pairs, before=0.0).pair_states
    return stats.rate(guard.is_copy(model.decode(states[-1])), pairs.seed)


def _null(opened: Opened, pairs: Pairs) -> Estimate | None:
    """Copies of the base model on the same captions and noise."""
    if not opened.provenance.base:
        return None
    base = LatentModel(load_pipeline(opened.provenance.base))
    return stats.rate(opened.guard.is_copy(plain_samples(opened.guard, base, pairs)), pairs.prompt)
