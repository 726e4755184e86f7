"""The one record of a calibration, unchanged from checkpoint to card: rule, risks, promise, and how they were measured.

Anything that is read back from a file is validated here (pydantic), because a record may come from a stranger:
unknown keys, wrong types and non-finite numbers are refused with the key's name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .estimate import Estimate
from .metric import Metric
from .report import Report
from .schema import MAX_BYTES, Finite, Schema, Timestep
from .text import one_line

SCHEMA_VERSION = 1


class Guidance(Schema):
    """The rule a checkpoint ships with, in numbers: validated, as it is stored.

    What samples is `guidance.core.SwitchAt`, made by `from_record`: the file that ships with a checkpoint needs torch
    alone, so it cannot know this class, and only the numbers that a stock pipeline can apply are left there.

    Attributes:
        transition: timestep at and below which plain CFG is on.
        sigma: noise level at `transition`; what transfers between schedulers.
        before: scale above the transition: 0 unconditional, negative opposite, 1 conditional.
        after: scale at and below it; None = whatever the caller asks for.
        refine: how many times finer than the sampler's own grid the steps at and below the transition are.
        anchor: the unconditional prediction comes from the base model, with the adapter off (LoRA only).
    """

    transition: Timestep
    sigma: Finite
    before: Finite
    after: Finite | None = None
    refine: Annotated[int, Field(ge=1)] = 1
    anchor: bool = False


class Sampler(Schema):
    """How samples were drawn when something was measured."""

    scheduler: str
    timesteps: Annotated[int, Field(ge=1)]
    prediction_type: str
    resolution: Annotated[int, Field(ge=1)]
    scale: Finite


class Strength(Schema):
    """How much of a fine-tune *plain CFG* can take: protects people who sample without the rule.

    Attributes:
        kind: "lora": `value` multiplies the adapter; "interpolation": weights are base + value * (tuned - base).
        value: the largest strength that keeps the promise, in [0, 1]; without a promise, the smallest tried.
        risk: of plain CFG at that strength, on the calibration pairs.
        alignment: agreement of image and caption there; None where it was not measured.
        promise: as in `Record`, or "" when none can be made.
    """

    kind: Literal["lora", "interpolation"]
    value: Annotated[float, Field(ge=0, le=1)]
    risk: Estimate
    alignment: Estimate | None = None
    promise: Annotated[str, Field(max_length=500)]


class Transfer(Schema):
    """What the chosen transition is worth under another sampler: measured, not promised.

    Attributes:
        scheduler: its name, such as "Euler" or "DPM-Solver++ 2M, Karras sigmas".
        timesteps: sampling steps.
        transition, sigma: the first timestep of that sampler's grid with guidance, and its noise level; None where
            the grid has none at or below the record's transition, so that guidance never comes on.
        risk: share of samples that reproduce a training image.
        alignment: agreement of image and caption; None where it was not measured.
    """

    scheduler: Annotated[str, Field(max_length=200)]
    timesteps: Annotated[int, Field(ge=1)]
    transition: Timestep | None
    sigma: Finite | None
    risk: Estimate
    alignment: Estimate | None = None


class TriageResult(Schema):
    """A calibrated threshold on the first gap: which prompts pull at all.

    Attributes:
        threshold: root-mean-square gap in epsilon; a prompt at or below it keeps plain CFG.
        timestep: where the gap was read.
        false_alarm: share of harmless (prompt, seed) pairs above the threshold, on prompts not used to choose it.
        miss: share of pulling pairs at or below it, likewise.
        wanted_miss: the miss rate that was asked for.
    """

    threshold: Annotated[float, Field(gt=0)]
    timestep: Finite
    false_alarm: Estimate
    miss: Estimate
    wanted_miss: Finite


class Record(Schema):
    """A calibration, unchanged from checkpoint to safetensors header, scheduler config, card and pipeline.

    Attributes:
        guidance: the rule, in numbers.
        risk: measured risk of that rule on the calibration pairs.
        promise: P(risk > alpha) <= delta over `population`, or "" when n was too small to promise anything.
        verified: the same risk on fresh seeds through the exported files; None until that was done.
        plain: risk of plain CFG, which a user who ignores the rule gets.
        alignment, plain_alignment: agreement of image and caption under the rule and under plain CFG.
        quality, plain_quality: kernel distance of the samples to images that were not trained on, lower is better,
            likewise; `method` names the embedder and the images. None where it was not measured.
        strength: how much of the fine-tune plain CFG can take; None where it was not calibrated.
        transfer: what the rule is worth under other samplers.
        triage: which prompts need the rule; None where it was not calibrated, so that all do.
        history: one report per epoch.
    """

    schema_version: Literal[1] = 1
    guidance: Guidance
    risk: Estimate
    plain: Estimate
    alpha: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    promise: str
    population: str
    verified: Estimate | None = None
    alignment: Estimate | None = None
    plain_alignment: Estimate | None = None
    quality: Estimate | None = None
    plain_quality: Estimate | None = None
    metric: Metric
    sampler: Sampler
    seeds: tuple[int, ...]
    base: str
    weights_sha256: str
    dataset_sha256: str
    versions: dict[str, str]
    strength: Strength | None = None
    transfer: tuple[Transfer, ...] = ()
    triage: TriageResult | None = None
    history: tuple[Report, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether a promise is made; `verified` says separately whether it was checked through the exported files."""
        return bool(self.promise)


def read_record(path: Path) -> Record:
    """Reads a record from a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a record; names the key that is wrong, or the schema version it does not know.
    """
    return parse_record(path.read_bytes()[: MAX_BYTES + 1], path)


def parse_record(text: str | bytes, where: str | Path) -> Record:
    """A record from text of unknown origin, found at `where`.

    Raises:
        ValueError: too long, not a record, or of a schema this version does not read; names the place.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"{where}: {len(text)} bytes or more, at most {MAX_BYTES} accepted, so not a basinguard record"
        )
    try:
        version = json.loads(text).get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{where}: not a JSON object, so not a basinguard record") from None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: record schema {one_line(repr(version), 160)}; this version of basinguard reads {SCHEMA_VERSION}"
        )
    try:
        return Record.from_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: {one_line(str(error), 400)}") from None
