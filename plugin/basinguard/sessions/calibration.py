"""The rule, the safe strength and their promises, for any fine-tune."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.candidate import RuleCandidate, StrengthCandidate
from ..calibration.promise import require_terms, shortfall
from ..calibration.record_builder import certify
from ..calibration.strength import safe_strength, strengths
from ..calibration.terms import CalibrationTerms
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
from .session import Session

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
            "frontier": [as_json(candidate) for candidate in self.tried],
            "strengths": [as_json(point) for point in self.strengths],
        }

    def __str__(self) -> str:
        record = self.record
        parts = [
            frontier_text(self.tried),
            f"\npopulation: {record.population}",
            f"promise: {record.promise or 'none'}",
        ]
        if record.quality is not None:
            parts.append(f"distance: {record.quality.method}; plain CFG has {record.plain_quality}")
        if record.strength is not None:
            parts += ["", strength_text(self.strengths), f"promise: {record.strength.promise or 'none'}"]
        if record.transfer:
            parts += ["", transfer_text(record.transfer)]
        return "\n".join(parts)

    def write(self, out: Path) -> None:
        """Writes the record, everything that was tried, and the plots."""
        out.mkdir(parents=True, exist_ok=True)
        (out / RECORD).write_text(self.record.to_json() + "\n", encoding="utf-8")
        (out / EVERYTHING).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        frontier_figure(self.tried, self.record).savefig(out / "frontier.png", dpi=150)
        if self.record.quality:
            quality_figure(self.tried, self.record).savefig(out / "quality.png", dpi=150)
        if self.strengths:
            strength_figure(self.strengths, self.record.alpha).savefig(out / "strength.png", dpi=150)


def calibrate_session(
    session: Session,
    terms: CalibrationTerms,
    *,
    transfer: bool = False,
    quality: KernelDistance | None = None,
) -> Calibration:
    """Calibrates an open model; nothing is trained, and the safe strength needs to know the base."""
    record, candidates = certify(
        session.guard, session.model, terms, session.provenance, anchored=session.anchored, quality=quality
    )
    points: list[StrengthCandidate] = []
    if session.provenance.base and terms.strengths:
        points = safe_strengths(session, terms)
        chosen = safe_strength(points, "lora" if session.anchored else "interpolation", terms)
        record = record.model_copy(update={"strength": chosen})
    if transfer:
        record = record.model_copy(update={"transfer": tuple(transfer_table(session.guard, session.pipe, record))})
    return Calibration(record, candidates, points)


def safe_strengths(session: Session, terms: CalibrationTerms) -> list[StrengthCandidate]:
    """Plain CFG between the base's weights and the fine-tuned ones."""
    blend = Blend(session.pipe, load_pipeline(session.provenance.base))
    return list(strengths(session.guard, blend.at, terms))


def as_json(point: Any) -> dict[str, Any]:
    """A dataclass with nouns in it as plain JSON; fields that are not printed are not written either."""
    values = {field.name: getattr(point, field.name) for field in dataclasses.fields(point) if field.repr}
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, Schema):
        return json.loads(value.to_json())
    return as_json(value) if dataclasses.is_dataclass(value) else value


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
