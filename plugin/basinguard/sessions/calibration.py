"""The product, its promise and what it keeps of what was taught, for any fine-tune."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.lessons import truth_of
from ..calibration.record_builder import Certificate, certify
from ..calibration.sample_archive import SampleArchive
from ..calibration.terms import CalibrationTerms
from ..calibration.weights import FixedWeights, Weights, product_weights
from ..core.files import write_text
from ..core.progress import say
from ..core.record import Record
from ..core.schema import Schema
from ..exports.fingerprints import weights_sha256
from ..exports.sentences import rulers_line, verdict
from ..pipelines.attachment import FLOW
from ..pipelines.base_check import require_base
from ..pipelines.distillation import fitting_terms
from ..pipelines.families.flow import FlowFamily
from ..pipelines.families.registry import family_of, why_no_rule
from ..pipelines.filter_check import require_filters
from ..pipelines.interpolation import Blend, BlendedWeights
from ..pipelines.loading import load_pipeline
from ..pipelines.transfer import transfer_table
from ..plots.tradeoff import products_figure, products_text, transfer_text
from ..similarity.rulers import feature_sets, missing_ruler
from .session import Session

RECORD, EVERYTHING, SAMPLES = "record.json", "calibration.json", "samples"


@dataclass(frozen=True)
class Calibration:
    """A certificate, and the record with the fingerprint of the weights that it is about.

    Attributes:
        note: how a rule reaches this family's pipeline where `export` does not ship it, or why it has none.
    """

    record: Record
    certificate: Certificate
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the record, and everything that was tried."""
        return {
            "record": json.loads(self.record.to_json()),
            "tried": tried_rows(self.certificate),
            "evaluations": self.certificate.evaluations,
            "note": self.note,
        }

    def __str__(self) -> str:
        record = self.record
        parts = [
            products_text(self.certificate),
            f"\n{verdict(record)}",
            f"population: {record.population}",
            f"promise: {record.promise or 'none'}",
            *([self.note] if self.note else []),
            record.metric.definition,
        ]
        if record.taught is not None:
            parts.append(f"taught, measured anew: {record.taught} ({record.taught.method}); {rulers_line(record)}")
        if record.transfer:
            parts += ["", transfer_text(record.transfer)]
        return "\n".join(parts)

    def write(self, out: Path) -> None:
        """Writes the record, everything that was tried, and the plot."""
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / RECORD, self.record.to_json() + "\n")
        write_text(out / EVERYTHING, json.dumps(self.to_dict(), indent=2) + "\n")
        products_figure(self.certificate).savefig(out / "products.png", dpi=150)


def calibrate_session(
    session: Session, terms: CalibrationTerms, *, transfer: bool = False, archive: SampleArchive | None = None
) -> Calibration:
    """Calibrates an open model; nothing is trained. Shares of it, and `taught`, need to know the base.

    Args:
        session: the model.
        terms: what is to be promised.
        transfer: also measure the product under other schedulers and step counts.
        archive: of what is drawn, so that a stopped calibration goes on.

    Raises:
        ValueError: a rule of a guidance-distilled model, `transfer` of a flow, strengths by timestep of what is no
            LoRA, or with `transfer`, or filters of a change that is not known.
    """
    if transfer and session.model.prediction_type == FLOW:
        raise ValueError(f"transfer: the schedulers it measures under are not for a flow, as {_class(session)} is one")
    require_lora_to_schedule(session, terms, transfer=transfer)
    require_change_to_filter(session, terms)
    terms = fitting_terms(session.pipe, terms)
    weights = weights_of(session)
    truth = truth_of(session.guard.training, feature_sets())
    if note := missing_ruler():
        say(note)
    certificate = certify(session.guard, weights, terms, session.provenance, truth=truth, archive=archive)
    record = _with_fingerprint(session, weights, certificate.record)
    if transfer:
        with product_weights(weights, record.product):
            record = record.model_copy(update={"transfer": tuple(transfer_table(session.guard, session.pipe, record))})
    return Calibration(record, certificate, delivery(session, record))


def require_lora_to_schedule(session: Session, terms: CalibrationTerms, *, transfer: bool = False) -> None:
    """Refuses strengths by timestep where there is no LoRA that could ship with them, or other samplers are asked for.

    Raises:
        ValueError: says what to give instead.
    """
    if not terms.strength_schedules:
        return
    if session.anchored is None:
        raise ValueError(
            "strength_schedules need a LoRA: give the base as the model and --lora FILE (`extract_lora` makes one)"
        )
    if transfer:
        raise ValueError("transfer measures one strength under other samplers: leave it out, or strength_schedules")


def require_change_to_filter(session: Session, terms: CalibrationTerms) -> None:
    """Refuses filters of the update of a model whose base was not given, or that has no such layers.

    Raises:
        ValueError: says what to give instead.
    """
    require_filters(session.pipe, terms.update_filters, session.provenance.base)


def delivery(session: Session, record: Record) -> str:
    """How a product reaches a pipeline that `export` does not ship, or why none does; "" where `export` does."""
    family = family_of(session.pipe)
    if record.product.strength_schedule is not None and isinstance(family, FlowFamily):
        return (
            "export writes no directory with an unmerged LoRA of this family: strengths by timestep are given to "
            f"{_class(session)}, after pipe.load_lora_weights, by protect(pipe, read_record({RECORD!r}))"
        )
    if family.distilled(session.pipe):
        return why_no_rule(session.pipe)
    if family.capabilities.exportable:
        return ""
    guider = "its modular pipeline by RuleGuider.for_scheduler(from_record(record.model_dump()), pipe.scheduler)"
    how = {"batched": f"{_class(session)} by protect(pipe, read_record({RECORD!r}))", "guider": guider}
    return f"a rule is given to {how[family.capabilities.guidance]}"


def _class(session: Session) -> str:
    return type(session.pipe).__name__


def archive_of(session: Session, out: Path | None) -> SampleArchive:
    """Where a calibration keeps what it draws while it works: below the folder of its results."""
    if out is None:
        return SampleArchive()
    base, plan = session.provenance.base, session.guard.plan
    fingerprints = (session.provenance.weights_sha256, weights_sha256(load_pipeline(base)) if base else "")
    return SampleArchive(out / SAMPLES, run=f"{fingerprints} {plan}")


def weights_of(session: Session) -> Weights:
    """The fine-tune with every share of it, or as it is where its base is not known.

    Raises:
        ValueError: a base that the model was not fine-tuned from: a share between the two would mean nothing.
    """
    base = base_of(session)
    if base is None:
        return FixedWeights(session.model, session.anchored)
    return BlendedWeights(Blend(session.pipe, base), session.anchored)


def base_of(session: Session) -> Any | None:
    """The pipeline that the model was fine-tuned from; None where it was not given.

    Raises:
        ValueError: the model was not fine-tuned from it.
    """
    name = session.provenance.base
    if not name:
        return None
    base = load_pipeline(name)
    require_base(session.pipe, base, name)
    return base


def _with_fingerprint(session: Session, weights: Weights, record: Record) -> Record:
    """The record of the weights at its strength, filtered as it says."""
    product, tuned, kind = record.product, session.provenance.weights_sha256, _kind(session)
    update: dict[str, Any] = {"product": product.model_copy(update={"kind": kind})}
    if not product.whole:
        update["product"] = product.model_copy(update={"kind": kind, "tuned_sha256": tuned})
        with product_weights(weights, product):
            update["weights_sha256"] = weights_sha256(session.pipe)
    if record.strength is not None:
        update["strength"] = record.strength.model_copy(update={"kind": kind})
    return record.model_copy(update=update)


def _kind(session: Session) -> str:
    return "lora" if session.anchored else "interpolation"


def tried_rows(certificate: Certificate) -> list[dict[str, Any]]:
    """Every product that was tried, with what it keeps, as plain JSON."""
    return [{"what": str(c.product), **as_json(c), "taught": _taught(c)} for c in certificate.tried]


def _taught(candidate: Any) -> dict[str, Any] | None:
    """Its value, each ruler's, and the share of copies among samples of held-out prompts."""
    taught = candidate.taught
    if taught is None:
        return None
    rulers = {name: json.loads(ruler.to_json()) for name, ruler in taught.rulers.items()}
    value = None if taught.value is None else json.loads(taught.value.to_json())
    return {"value": value, "rulers": rulers, "copies": taught.copies, "reason": taught.reason}


def as_json(point: Any) -> dict[str, Any]:
    """A dataclass with nouns in it as plain JSON; fields that are not printed are not written either."""
    values = {field.name: getattr(point, field.name) for field in dataclasses.fields(point) if field.repr}
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, Schema):
        return json.loads(value.to_json())
    return as_json(value) if dataclasses.is_dataclass(value) else value


def require_new_calibration(out: Path | None) -> None:
    """Refuses a folder that holds a calibration already.

    Raises:
        FileExistsError: it does.
    """
    if out is not None and (out / RECORD).exists():
        raise FileExistsError(f"{out / RECORD}: exists already; name another folder")
