"""The nouns: what the other modules hand to each other and what is written to disk. Frozen, JSON both ways.

Anything that is read back from a file is validated here (pydantic), because a record may come from a stranger:
unknown keys, wrong types and non-finite numbers are refused with the key's name.
"""

from __future__ import annotations

import json
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
    where = ".".join(str(part) for part in first["loc"]) or "the whole text"
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
    """

    caption: int
    seed: int
    timestep: Timestep | None
    sigma: Finite | None
    lower: Timestep | None
    monotone: bool = True

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


class Guidance(Noun):
    """The rule a checkpoint ships with, in numbers.

    Attributes:
        transition: timestep at and below which ordinary CFG is on.
        sigma: noise level at `transition`; what transfers between schedulers.
        before: scale above the transition: 0 unconditional, negative opposite, 1 conditional.
        after: scale at and below it; None = whatever the caller asks for.
    """

    transition: Timestep
    sigma: Finite
    before: Finite
    after: Finite | None = None


class Sampler(Noun):
    """How samples were drawn when something was measured."""

    scheduler: str
    timesteps: Annotated[int, Field(ge=1)]
    prediction_type: str
    resolution: Annotated[int, Field(ge=1)]
    scale: Finite


class Report(Noun):
    """What the guard saw at one epoch. Epoch -1 is the untouched base model.

    `None` stands where something could not be measured; it never stands for zero. A report with a `problem` is a gap:
    the probe of that epoch failed, and nothing was measured.
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


class Record(Noun):
    """A calibration, unchanged from checkpoint to safetensors header, scheduler config, card and pipeline.

    Attributes:
        guidance: the rule, in numbers.
        risk: measured risk of that rule on the calibration pairs.
        promise: P(risk > alpha) <= delta over `population`, or "" when n was too small to promise anything.
        verified: the same risk on fresh seeds through the exported files; None until that was done.
        plain: risk of ordinary CFG, which a user who ignores the rule gets.
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
    metric: Metric
    sampler: Sampler
    seeds: tuple[int, ...]
    base: str
    weights_sha256: str
    dataset_sha256: str
    versions: dict[str, str]
    history: tuple[Report, ...] = ()


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
