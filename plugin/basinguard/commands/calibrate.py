"""`basinguard calibrate MODEL --data DIR`: the rule, the safe strength and their promises, for any fine-tune."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.candidate import RuleCandidate, StrengthCandidate
from ..calibration.promise import require_terms, shortfall
from ..calibration.record_builder import certify
from ..calibration.strength import safe_strength, strengths
from ..calibration.terms import STRENGTHS, CalibrationTerms
from ..core.record import Record
from ..core.schema import Schema
from ..pipelines.interpolation import Blend
from ..pipelines.loading import load_pipeline
from ..pipelines.transfer import transfer_table
from ..plots.tradeoff import (
    frontier_figure,
    frontier_text,
    quality_figure,
    strength_figure,
    strength_text,
    transfer_text,
)
from ..similarity.kernel_distance import KernelDistance
from .quality_reference import quality_for
from .session import Opened, open_model

RECORD, EVERYTHING = "record.json", "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """A record with everything that was tried on the way to it."""

    record: Record
    tried: list[RuleCandidate]
    strengths: list[StrengthCandidate]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the record, the whole frontier, every strength."""
        return {
            "record": json.loads(self.record.to_json()),
            "frontier": [plain(candidate) for candidate in self.tried],
            "strengths": [plain(point) for point in self.strengths],
        }

    def __str__(self) -> str:
        record = self.record
        parts = [
            frontier_text(self.tried),
            f"\npopulation: {record.population}",
            f"promise: {record.promise or 'none'}",
        ]
        if record.quality is not None:
            parts.append(f"distance: {record.quality.method}; ordinary guidance has {record.plain_quality}")
        if record.strength is not None:
            parts += ["", strength_text(self.strengths), f"promise: {record.strength.promise or 'none'}"]
        if record.transfer:
            parts += ["", transfer_text(record.transfer)]
        return "\n".join(parts)


def calibrate(
    model: str,
    data: Path,
    *,
    base: str = "",
    lora: Path | None = None,
    terms: CalibrationTerms | None = None,
    scale: float = 7.5,
    timesteps: int = 20,
    tried: Sequence[float] = STRENGTHS,
    transfer: bool = False,
    alignment: str = "auto",
    heldout: Path | None = None,
    out: Path | None = None,
) -> Calibration:
    """Calibrates any fine-tune; nothing is trained.

    Args:
        model: a diffusers directory or hub id.
        data: folder of the captioned images it was trained on.
        base: what it was fine-tuned from; without it there is no safe strength.
        lora: a LoRA file on `model`, which is then the base.
        terms: what is to be promised, and the rules that may be chosen.
        scale: of ordinary CFG.
        timesteps: sampling steps.
        tried: strengths to test; none when empty.
        transfer: also measure the rule under other schedulers and step counts.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        heldout: folder of like images that were not trained on. Quality is the distance to them in that model's eyes;
            without them, to the base model's samples of the same captions. It decides between rules that align alike.
        out: new folder for `record.json`, `calibration.json` and plots; nothing is written without it.

    Raises:
        FileExistsError: `out` holds a calibration already.
        FileNotFoundError: no such model or folder.
        ValueError: a number out of range, held-out images that cannot be used, or too few pairs for any promise; says
            how many it takes.
    """
    terms = terms or CalibrationTerms()
    require_promisable(terms, out)
    opened = open_model(model, data, base=base, lora=lora, scale=scale, timesteps=timesteps, alignment=alignment)
    quality = quality_for(opened, terms.pairs, heldout)
    found = calibrate_opened(opened, terms, tried=tried, transfer=transfer, quality=quality)
    if out is not None:
        write(found, out)
    return found


def calibrate_opened(
    opened: Opened,
    terms: CalibrationTerms,
    *,
    tried: Sequence[float] = STRENGTHS,
    transfer: bool = False,
    quality: KernelDistance | None = None,
) -> Calibration:
    """Calibrates what is open already; the safe strength needs to know the base."""
    record, candidates = certify(
        opened.guard, opened.model, terms, opened.provenance, anchored=opened.anchored, quality=quality
    )
    points: list[StrengthCandidate] = []
    if opened.provenance.base and tried:
        points = safe_strengths(opened, terms, tried)
        chosen = safe_strength(points, "lora" if opened.anchored else "interpolation", terms)
        record = record.model_copy(update={"strength": chosen})
    if transfer:
        record = record.model_copy(update={"transfer": tuple(transfer_table(opened.guard, opened.pipe, record))})
    return Calibration(record, candidates, points)


def safe_strengths(
    opened: Opened, terms: CalibrationTerms, tried: Sequence[float] = STRENGTHS
) -> list[StrengthCandidate]:
    """Ordinary CFG between the base's weights and the fine-tuned ones."""
    blend = Blend(opened.pipe, load_pipeline(opened.provenance.base))
    return list(strengths(opened.guard, blend.at, dataclasses.replace(terms, strengths=tuple(tried))))


def write(found: Calibration, out: Path) -> None:
    """Writes the record, everything that was tried, and the plots."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).write_text(found.record.to_json() + "\n", encoding="utf-8")
    (out / EVERYTHING).write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    frontier_figure(found.tried, found.record).savefig(out / "frontier.png", dpi=150)
    if found.record.quality:
        quality_figure(found.tried, found.record).savefig(out / "quality.png", dpi=150)
    if found.strengths:
        strength_figure(found.strengths, found.record.alpha).savefig(out / "strength.png", dpi=150)


def plain(point: Any) -> dict[str, Any]:
    """A dataclass with nouns in it as plain JSON; fields that are not printed are not written either."""
    values = {field.name: getattr(point, field.name) for field in dataclasses.fields(point) if field.repr}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Schema):
        return json.loads(value.to_json())
    return plain(value) if dataclasses.is_dataclass(value) else value


def require_promisable(terms: CalibrationTerms, out: Path | None) -> None:
    """Says now what would be a pity to find out after an hour of sampling.

    Raises:
        FileExistsError: `out` holds a calibration already.
        ValueError: a number out of range, or too few pairs for any promise.
    """
    require_terms(terms.alpha, terms.delta)
    few = shortfall(terms.alpha, terms.share, terms.pairs)
    if few:
        raise ValueError(f"pairs={terms.pairs}, delta shared by {round(terms.delta / terms.share)} settings: {few}")
    if out is not None and (out / RECORD).exists():
        raise FileExistsError(f"{out / RECORD}: exists already; name another folder")
