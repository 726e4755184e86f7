"""The one record of a calibration, unchanged from checkpoint to card: rule, risks, promise, and how they were measured.

Anything that is read back from a file is validated here (pydantic), because a record may come from a stranger:
unknown keys, wrong types and non-finite numbers are refused with the key's name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .attack_table import AttackTable
from .estimate import Estimate
from .membership_table import MembershipTable
from .metric import Metric
from .recorded_weights import RecordedWeights
from .report import Report
from .schema import MAX_BYTES, Finite, Schema, Timestep
from .text import one_line

SCHEMA_VERSION = 2
WITHOUT_TAUGHT = 1  # the schema before `taught`: read, its kernel distances left behind
DROPPED = ("quality", "plain_quality")  # those distances
MOST_SIMILARITIES = 500  # about 8 kB of JSON; more tell a monitor little
SIMILARITY_DIGITS = 4  # what a monitor ranks is rounded alike, so that no rank comes from rounding
ALWAYS_ON = 999.0  # a transition that nothing lies above


def _of_today(version: Any) -> Any:
    """The schema that one is read as; told here, not written into the text, so that errors repeat what was given."""
    return SCHEMA_VERSION if version == WITHOUT_TAUGHT and not isinstance(version, bool) else version


class Guidance(Schema):
    """The rule a checkpoint ships with, in numbers: validated, as it is stored; plain CFG is one of them.

    What samples is `guidance.core.SwitchAt`, made by `from_record`: the file that ships with a checkpoint needs torch
    alone, so it cannot know this class, and only the numbers that a stock pipeline can apply are left there.

    Attributes:
        transition: timestep at and below which plain CFG is on.
        sigma: noise level at `transition`, noise / signal; what transfers between schedulers. A flow, x = (1 - s) x_0 +
            s eps with s = t / 1000, has s / (1 - s).
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

    @property
    def plain(self) -> bool:
        """Whether this is plain CFG of one scale from the first timestep on: nothing that a loader must apply."""
        return not self.anchor and self.refine == 1 and (self.transition >= ALWAYS_ON or self.before == self.after)


class Sampler(Schema):
    """How samples were drawn when something was measured.

    Attributes:
        scheduler: solver and grid.
        timesteps: sampling steps.
        prediction_type: of the network, "epsilon", "v_prediction" or "flow_prediction" (velocity eps - x_0).
        resolution: side of the images, in pixels.
        scale: guidance scale w in `eps_uncond + w * (eps_cond - eps_uncond)`, whatever a pipeline calls it.
    """

    scheduler: str
    timesteps: Annotated[int, Field(ge=1)]
    prediction_type: str
    resolution: Annotated[int, Field(ge=1)]
    scale: Finite


class Strength(Schema):
    """How much of a fine-tune *plain CFG* can take: protects people who sample without the rule.

    Attributes:
        kind: "lora": `value` multiplies the adapter; "interpolation": weights are base + value * (tuned - base).
        value: the strength that keeps the promise with the most `taught`, in [0, 1].
        risk: of plain CFG at that strength, on the calibration pairs.
        scale: the guidance scale it was measured at; None for that of the record's sampler.
        taught: as in `Record`.
        alignment: agreement of image and caption there; None where it was not measured.
        promise: as in `Record`, or "" when none can be made.
    """

    kind: Literal["lora", "interpolation"]
    value: Annotated[float, Field(ge=0, le=1)]
    risk: Estimate
    scale: Finite | None = None
    taught: Estimate | None = None
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
        guidance: the rule, in numbers; plain CFG where no rule is needed.
        product: which weights: epoch and strength.
        risk: measured risk of these weights under that rule, on the calibration pairs.
        similarities: of the same samples to the nearest training image each, by `stored_similarities`; none in records
            of before.
        promise: P(risk > alpha) <= delta over `population`, or "" when n was too small to promise anything.
        verified: the same risk on fresh seeds through the exported files; None until that was done.
        plain: risk of plain CFG with the whole fine-tune of the newest epoch: what training without a guard gives.
        unruled: risk of plain CFG with these very weights, for those who load them without the rule; None where the
            rule is plain CFG, and in records of before.
        taught, plain_taught: how much of what was taught is in samples of held-out prompts, net of copies, of this
            product and of what `plain` is: 0 is the base model, 1 true images. None where it was not measured.
        best_plain_taught: the same of plain CFG with the whole fine-tune at the epoch and scale that keep most.
        taught_rulers: each ruler that `taught` is the smallest of, by name, with its own value.
        base_risk: risk of the base model on the same pairs: what the copy detector gets wrong.
        alignment, plain_alignment: agreement of image and caption, likewise.
        strength: how much of the fine-tune plain CFG can take; None where it was not proven.
        transfer: what the rule is worth under other samplers.
        files_sha256: one hash of the training images' files, in the order that reports count them in; "" where the
            run did not know their files.
        triage: which prompts need the rule; None where it was not calibrated, so that all do.
        attacks: what was tried to get the training images out; None where nothing was.
        membership: how well it can be told which images these weights were trained on; none where that was not tried.
        history: one report per epoch.
    """

    schema_version: Annotated[Literal[2], BeforeValidator(_of_today)] = 2
    guidance: Guidance
    product: RecordedWeights = RecordedWeights()
    risk: Estimate
    plain: Estimate
    alpha: Annotated[float, Field(gt=0, lt=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    promise: str
    population: str
    similarities: Annotated[tuple[Finite, ...], Field(max_length=MOST_SIMILARITIES)] = ()
    verified: Estimate | None = None
    unruled: Estimate | None = None
    base_risk: Estimate | None = None
    taught: Estimate | None = None
    plain_taught: Estimate | None = None
    best_plain_taught: Estimate | None = None
    taught_rulers: tuple[tuple[str, Estimate], ...] = ()
    alignment: Estimate | None = None
    plain_alignment: Estimate | None = None
    metric: Metric
    sampler: Sampler
    seeds: tuple[int, ...]
    base: str
    weights_sha256: str
    dataset_sha256: str
    files_sha256: str = ""
    versions: dict[str, str]
    strength: Strength | None = None
    transfer: tuple[Transfer, ...] = ()
    triage: TriageResult | None = None
    attacks: AttackTable | None = None
    membership: tuple[MembershipTable, ...] = ()
    history: tuple[Report, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether a promise is made; `verified` says separately whether it was checked through the exported files."""
        return bool(self.promise)

    @property
    def needs_nothing(self) -> bool:
        """Whether the weights with plain CFG are what was measured: nothing that a loader must apply."""
        return self.guidance.plain and self.product.strength_schedule is None

    @property
    def scale(self) -> float:
        """The guidance scale to sample with: the rule's own, else that of the calibration."""
        return self.sampler.scale if self.guidance.after is None else self.guidance.after

    @property
    def nothing_left(self) -> bool:
        """Whether `taught` was measured and its interval is not above the base model's 0: no success, however safe."""
        return self.taught is not None and self.taught.low <= 0


def stored_similarities(values: Sequence[float]) -> tuple[float, ...]:
    """Similarities as a record holds them: rounded and sorted, so that none can be traced to a caption or an image.

    Of more than `MOST_SIMILARITIES` as many are drawn, without regard to their values.

    Example:
        >>> stored_similarities([0.51234, 0.3])
        (0.3, 0.5123)
    """
    similarities = list(values)
    if len(similarities) > MOST_SIMILARITIES:
        similarities = random.Random(0).sample(similarities, MOST_SIMILARITIES)
    return tuple(sorted(round(value, SIMILARITY_DIGITS) for value in similarities))


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
        values = json.loads(text)
        version = values.get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{where}: not a JSON object, so not a basinguard record") from None
    if _of_today(version) != SCHEMA_VERSION:
        raise ValueError(
            f"{where}: record schema {one_line(repr(version), 160)}; this version of basinguard reads "
            f"{WITHOUT_TAUGHT} and {SCHEMA_VERSION}"
        )
    if version == WITHOUT_TAUGHT:
        text = json.dumps({key: value for key, value in values.items() if key not in DROPPED})
    try:
        return Record.from_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: {one_line(str(error), 400)}") from None
