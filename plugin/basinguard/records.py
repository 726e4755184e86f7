"""The nouns: what the other modules hand to each other and what is written to disk. Frozen, JSON both ways.

Anything that is read back from a file is validated here (pydantic), because a record may come from a stranger:
unknown keys, wrong types and non-finite numbers are refused with the key's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 1
MAX_BYTES = 4 * 2**20  # a record is a few kilobytes; anything near this was not written by us

Finite = Annotated[float, AllowInfNan(False)]
Timestep = Annotated[float, Field(ge=0, le=999)]


class Noun(BaseModel):
    """A frozen value with one JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def to_json(self) -> str:
        """The JSON form, keys in declaration order, indented for people."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not JSON, too large, or a key that is missing, unknown or out of range; the key is named.
        """
        if len(text) > MAX_BYTES:
            raise ValueError(f"{cls.__name__}: {len(text)} bytes given, at most {MAX_BYTES} accepted")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not a valid {cls.__name__}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200] or "the whole text"
    given = repr(first.get("input"))
    return f"{where}: {first['msg']} (given: {given[:80]})"


class Estimate(Noun):
    """A number that says how sure it is.

    Attributes:
        value: the point estimate.
        low, high: ends of the interval.
        level: coverage of the interval, in (0, 1).
        n: how many independent observations it rests on.
        method: name of the interval or bound, as in `basinguard.stats`.
    """

    value: Finite
    low: Finite
    high: Finite
    level: Annotated[float, Field(gt=0, lt=1)]
    n: Annotated[int, Field(ge=1)]
    method: Annotated[str, Field(max_length=200)]

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"


class Match(Noun):
    """The training image nearest to one sample: its index, the similarity (1 = same), and whether it was mirrored."""

    index: Annotated[int, Field(ge=0)]
    similarity: Finite
    mirrored: bool = False


class Metric(Noun):
    """Which eye said "same image": a threshold belongs to one embedder with one preprocessing, and to no other."""

    embedder: Annotated[str, Field(max_length=200)]
    threshold: Finite
    source: Annotated[str, Field(max_length=500)]


class Exit(Noun):
    """Where one (caption, seed) leaves the basin.

    Attributes:
        caption, seed: which trajectory; `caption` is an index into the probed captions.
        timestep: the smallest grid timestep at which switching CFG on still reproduces the image;
            None when it is never reproduced.
        sigma: noise level at `timestep`.
        lower: the next grid timestep below, where it no longer does; None when every one reproduces it
            (`always`): the true exit then lies below the grid.
        monotone: False when some candidate contradicted the order (reproduced below one that did not).
        reproduces: all grid timesteps that reproduce the image, where they are not ordered; every one was tried.
    """

    caption: int
    seed: int
    timestep: Timestep | None
    sigma: Finite | None
    lower: Timestep | None
    monotone: bool = True
    reproduces: tuple[Timestep, ...] = ()

    @property
    def censored(self) -> Literal["never", "always", ""]:
        """Which side the true exit was not seen from."""
        if self.timestep is None:
            return "never"
        return "always" if self.lower is None else ""

    @property
    def width(self) -> float:
        """Basin width as a share of [0, T]: from t = T down to the exit. Never memorized: 0."""
        return 0.0 if self.timestep is None else 1 - self.timestep / 999

    def reproduced_from(self, timestep: float) -> bool:
        """Whether guidance switched on at this grid timestep reproduces the image."""
        if self.reproduces:
            return timestep in self.reproduces
        return self.timestep is not None and self.timestep <= timestep


class Guidance(Noun):
    """The rule a checkpoint ships with, in numbers.

    Attributes:
        transition: timestep at and below which ordinary CFG is on.
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


class Sampler(Noun):
    """How samples were drawn when something was measured."""

    scheduler: str
    timesteps: Annotated[int, Field(ge=1)]
    prediction_type: str
    resolution: Annotated[int, Field(ge=1)]
    scale: Finite


class Strength(Noun):
    """How much of a fine-tune *ordinary CFG* can take: protects people who sample without the rule.

    Attributes:
        kind: "lora": `value` multiplies the adapter; "interpolation": weights are base + value * (tuned - base).
        value: the largest strength that keeps the promise, in [0, 1]; without a promise, the smallest tried.
        risk: of ordinary CFG at that strength, on the calibration pairs.
        alignment: agreement of image and caption there; None where it was not measured.
        promise: as in `Record`, or "" when none can be made.
    """

    kind: Literal["lora", "interpolation"]
    value: Annotated[float, Field(ge=0, le=1)]
    risk: Estimate
    alignment: Estimate | None = None
    promise: Annotated[str, Field(max_length=500)]


class Transfer(Noun):
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


class TriageResult(Noun):
    """A calibrated threshold on the first gap: which prompts pull at all.

    Attributes:
        threshold: root-mean-square gap in epsilon; a prompt at or below it keeps ordinary CFG.
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


class Group(Noun):
    """One kind of caption in one report.

    Attributes:
        name: "unique" and "duplicated" training captions, or "heldout", which the model was never trained on.
        captions: how many were sampled.
        risk: share of samples that reproduce a training image.
        width: mean basin width; of held-out captions, of the basin of whichever training image they fall into.
    """

    name: Annotated[str, Field(max_length=40)]
    captions: Annotated[int, Field(ge=1)]
    risk: Estimate
    width: Estimate


class ImageResult(Noun):
    """What one report found about one training image; None stands where that was not measured.

    Attributes:
        index: of the image in the training set.
        width: mean basin width over the seeds of its caption.
        gap_since_base: rise of its caption's gap since the base model, same noise.
        sigma_c, sigma_c_uncond: critical scale with its caption and without.
    """

    index: Annotated[int, Field(ge=0)]
    width: Finite | None = None
    gap_since_base: Finite | None = None
    sigma_c: Finite | None = None
    sigma_c_uncond: Finite | None = None


class Report(Noun):
    """What the guard saw at one epoch. Epoch -1 is the untouched base model.

    `None` stands where something was not or could not be measured; it never stands for zero. A report with a `problem`
    is a gap: the probe of that epoch failed, and nothing was measured.

    Attributes:
        risk: share of samples of ordinary CFG that reproduce a training image.
        width, log_width: basin width as a share of [0, T], and in log sigma.
        exit: median exit of the pairs that memorize.
        transition: estimate of the boldest transition whose risk stays within the plan's; None where there is none, or
            where nothing was `searched`.
        gap, gap_heldout: gap at the noisiest timestep, of training and of held-out captions.
        gap_since_base: mean rise of the training captions' gap since the base model, same noise.
        gap_excess: that rise less the held-out captions' own; above 0, the gap raises the alarm.
        gap_auc: chance that a training caption's gap rose more than a held-out one's.
        sigma_c, sigma_c_uncond: critical scale of training images with their caption and without (geometric means).
        sigma_c_since_base: mean rise of log sigma_c since the base model.
        sigma_c_excess: that rise less the held-out images' own.
        caption_gap: mean of log sigma_c less log sigma_c without the caption.
        risk_uncond: share of samples of the empty prompt that reproduce a training image.
        curve: P(reproduced | transition = t), with a band that holds for the whole curve.
        probed: training captions that were sampled; what `exits` count in.
        images: the training images that were looked at, those whose caption's gap rose most first.
        precision: what the probe's budget bought.
        alignment_heldout: agreement of the samples of held-out captions with them, plain CFG.
        fidelity: how far those samples look like the subject or style that is taught, higher is better.
        note: what the reader should know before acting on the numbers.
    """

    epoch: int
    train_step: int
    risk: Estimate | None
    width: Estimate | None
    exit: Estimate | None
    transition: Finite | None
    gap: Estimate | None
    gap_heldout: Estimate | None
    similarity_p95: Estimate | None
    similarity_heldout: Estimate | None
    risk_uncond: Estimate | None
    alignment: Estimate | None
    curve: tuple[tuple[Finite, Estimate], ...] = ()
    exits: tuple[Exit, ...] = ()
    unet_evals: int
    seconds: Finite
    problem: Annotated[str, Field(max_length=500)] = ""
    log_width: Estimate | None = None
    gap_since_base: Estimate | None = None
    gap_excess: Estimate | None = None
    gap_auc: Estimate | None = None
    sigma_c: Estimate | None = None
    sigma_c_uncond: Estimate | None = None
    sigma_c_since_base: Estimate | None = None
    sigma_c_excess: Estimate | None = None
    caption_gap: Estimate | None = None
    groups: tuple[Group, ...] = ()
    images: tuple[ImageResult, ...] = ()
    probed: tuple[int, ...] = ()
    precision: str = ""
    note: str = ""
    alignment_heldout: Estimate | None = None
    fidelity: Estimate | None = None

    @property
    def searched(self) -> bool:
        """Whether exits were looked for: only then does a transition of None say that none protects."""
        return self.width is not None

    @classmethod
    def missed(cls, epoch: int, train_step: int, problem: str) -> Report:
        """The gap that a failed probe leaves.

        Example:
            >>> Report.missed(3, 120, "out of memory").risk is None
            True
        """
        nothing = {name: None for name, field in cls.model_fields.items() if field.is_required()}
        told = {"epoch": epoch, "train_step": train_step, "unet_evals": 0, "seconds": 0.0, "problem": problem[:500]}
        return cls.model_validate(nothing | told)


def measured(history: Sequence[Report]) -> list[Report]:
    """The reports that are no gaps, in their order."""
    return [report for report in history if not report.problem]


def last_search(history: Sequence[Report]) -> Report | None:
    """The newest report that looked for exits; its transition stands until another one does."""
    return next((report for report in reversed(history) if report.searched), None)


class Record(Noun):
    """A calibration, unchanged from checkpoint to safetensors header, scheduler config, card and pipeline.

    Attributes:
        guidance: the rule, in numbers.
        risk: measured risk of that rule on the calibration pairs.
        promise: P(risk > alpha) <= delta over `population`, or "" when n was too small to promise anything.
        verified: the same risk on fresh seeds through the exported files; None until that was done.
        plain: risk of ordinary CFG, which a user who ignores the rule gets.
        alignment, plain_alignment: agreement of image and caption under the rule and under ordinary CFG.
        quality, plain_quality: kernel distance of the samples to images that were not trained on, lower is better,
            likewise; `method` names the eye and the images. None where it was not measured.
        strength: how much of the fine-tune ordinary CFG can take; None where it was not calibrated.
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


@dataclass(frozen=True)
class Step:
    """One step of a trajectory, as `sampling.sample` yields it.

    Attributes:
        index: position on the sampler's grid.
        timestep: training timestep of each sample, [B]; samples of one batch may stand at different ones.
        sigma: noise level of each sample, [B].
        x: latents at `timestep`, [B, ...].
        eps_uncond, eps_cond: predictions that were evaluated, [B, ...]; None for a branch that was not needed.
        gap: root-mean-square of eps_cond - eps_uncond, [B]; None unless both branches were evaluated.
        scale: guidance scale used, [B].
        denoised: predicted clean latents, [B, ...].
        x_next: latents at the next timestep, [B, ...].
        unet_evals: sample-evaluations of the network this step took.
        state: x_next with what a multistep sampler remembers, see `solvers.Path`.
    """

    index: int
    timestep: torch.Tensor
    sigma: torch.Tensor
    x: torch.Tensor
    eps_uncond: torch.Tensor | None
    eps_cond: torch.Tensor | None
    gap: torch.Tensor | None
    scale: torch.Tensor
    denoised: torch.Tensor
    x_next: torch.Tensor
    unet_evals: int
    state: torch.Tensor


def read_record(path: Path) -> Record:
    """Reads a record from a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a record; names the key that is wrong, or the schema version it does not know.
    """
    text = path.read_bytes()[: MAX_BYTES + 1]
    if len(text) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES} bytes, so not a basinguard record")
    try:
        version = json.loads(text).get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{path}: not a JSON object, so not a basinguard record") from None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: record schema {version!r}; this version of basinguard reads {SCHEMA_VERSION}")
    return Record.from_json(text)
