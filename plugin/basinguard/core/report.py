"""What one probe of the guard measured: a report made of parts, one for each stage of the probe.

In JSON a report is flat, so that it reads as one list of numbers: `gaps.excess` stands there as `gap_excess`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from .estimate import Estimate
from .schema import Finite, Schema, Timestep
from .text import epoch_name


class Exit(Schema):
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


class CaptionGroup(Schema):
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


class ImageResult(Schema):
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


class Part(Schema):
    """What one stage of a probe measured. `None` stands where something was not or could not be; never for zero.

    An alias is the name in the report's JSON, in log tags and in `Report.estimates`.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)


class Samples(Part):
    """What plain CFG drew for the training captions.

    Attributes:
        risk: share of samples that reproduce a training image.
        similarity_p95: to the nearest training image, 95th percentile.
        alignment: agreement of the samples with their captions.
    """

    risk: Estimate | None = None
    similarity_p95: Estimate | None = None
    alignment: Estimate | None = None


class Basin(Part):
    """What the search for exits found.

    Attributes:
        width, log_width: basin width as a share of [0, T], and in log sigma.
        exit: median exit of the pairs that memorize.
        transition: estimate of the boldest transition whose risk stays within the plan's alpha; None where there is
            none, or where no exits were searched.
        risk_uncond: share of samples of the empty prompt that reproduce a training image.
        curve: P(reproduced | transition = t), with a band that holds for the whole curve.
        exits: of every (caption, seed) pair; captions count in `Report.probed`.
    """

    width: Estimate | None = None
    log_width: Estimate | None = None
    exit: Estimate | None = None
    transition: Finite | None = None
    risk_uncond: Estimate | None = None
    curve: tuple[tuple[Finite, Estimate], ...] = ()
    exits: tuple[Exit, ...] = ()


class Gaps(Part):
    """The gap at the noisiest timestep.

    Attributes:
        train, heldout: of training and of held-out captions.
        since_base: mean rise of the training captions' gap since the base model, same noise.
        excess: that rise less the held-out captions' own; above 0, the gap raises the alarm.
        auc: chance that a training caption's gap rose more than a held-out one's.
    """

    train: Annotated[Estimate | None, Field(alias="gap")] = None
    heldout: Annotated[Estimate | None, Field(alias="gap_heldout")] = None
    since_base: Annotated[Estimate | None, Field(alias="gap_since_base")] = None
    excess: Annotated[Estimate | None, Field(alias="gap_excess")] = None
    auc: Annotated[Estimate | None, Field(alias="gap_auc")] = None


class CriticalScales(Part):
    """How much noise training images bear.

    Attributes:
        sigma_c, sigma_c_uncond: critical scale with the caption and without (geometric means).
        since_base: mean rise of log sigma_c since the base model.
        excess: that rise less the held-out images' own.
        caption_effect: mean of log sigma_c less log sigma_c without the caption.
    """

    sigma_c: Estimate | None = None
    sigma_c_uncond: Estimate | None = None
    since_base: Annotated[Estimate | None, Field(alias="sigma_c_since_base")] = None
    excess: Annotated[Estimate | None, Field(alias="sigma_c_excess")] = None
    caption_effect: Annotated[Estimate | None, Field(alias="caption_gap")] = None


class Heldout(Part):
    """What plain CFG drew for captions that the model was never trained on.

    Attributes:
        similarity_p95: to the nearest training image, 95th percentile.
        alignment: agreement of the samples with their captions.
        taught: what they show of what is taught, net of copies: 0 is the base model, 1 true images; also measured where
            held-out prompts are stand-ins. None where it was not measured or cannot be resolved.
        taught_rulers: each ruler that it is the smallest of, by name.
        taught_problem: why it cannot be resolved, or why a ruler is missing.
    """

    similarity_p95: Annotated[Estimate | None, Field(alias="similarity_heldout")] = None
    alignment: Annotated[Estimate | None, Field(alias="alignment_heldout")] = None
    taught: Estimate | None = None
    taught_rulers: tuple[tuple[str, Estimate], ...] = ()
    taught_problem: Annotated[str, Field(max_length=500)] = ""


PARTS: dict[str, type[Part]] = {
    "samples": Samples,
    "basin": Basin,
    "gaps": Gaps,
    "critical_scales": CriticalScales,
    "heldout": Heldout,
}
KEYS = {name: [f.alias or key for key, f in part.model_fields.items()] for name, part in PARTS.items()}
JSON_ORDER = (
    *("epoch", "train_step", "risk", "width", "exit", "transition", "gap", "gap_heldout", "similarity_p95"),
    *("similarity_heldout", "risk_uncond", "alignment", "curve", "exits", "unet_evals", "seconds", "problem"),
    *("log_width", "gap_since_base", "gap_excess", "gap_auc", "sigma_c", "sigma_c_uncond", "sigma_c_since_base"),
    *("sigma_c_excess", "caption_gap", "groups", "images", "probed", "precision", "note", "alignment_heldout"),
    *("taught", "taught_rulers", "taught_problem"),
)


RETIRED = ("fidelity",)  # keys of earlier versions; `taught` says it


class Report(Schema):
    """What the guard saw at one epoch. Epoch -1 is the untouched base model.

    Attributes:
        samples, basin, gaps, critical_scales, heldout: one part for each stage; empty where the stage was left out.
        groups: risk and width by kind of caption.
        images: the training images that were looked at, those whose caption's gap rose most first.
        probed: training captions that were sampled; what `basin.exits` count in.
        unet_evals: rows put through the network.
        precision: what the probe's budget bought.
        note: what the reader should know before acting on the numbers.
        problem: why the report was missed: the probe of that epoch failed, and nothing was measured.
    """

    epoch: int
    train_step: int
    unet_evals: int
    seconds: Finite
    samples: Samples = Samples()
    basin: Basin = Basin()
    gaps: Gaps = Gaps()
    critical_scales: CriticalScales = CriticalScales()
    heldout: Heldout = Heldout()
    groups: tuple[CaptionGroup, ...] = ()
    images: tuple[ImageResult, ...] = ()
    probed: tuple[int, ...] = ()
    precision: str = ""
    note: str = ""
    problem: Annotated[str, Field(max_length=500)] = ""

    def __str__(self) -> str:
        """One line: what a person asks first. Everything is in `to_json()`.

        Example:
            >>> print(Report.missed(3, 120, "out of memory"))
            epoch 4, update 120: missed (out of memory)
        """
        where = f"{epoch_name(self.epoch)}, update {self.train_step}"
        if self.problem:
            return f"{where}: missed ({self.problem})"
        shown = {"risk": self.samples.risk, "taught": self.heldout.taught, "gap excess": self.gaps.excess}
        parts = [f"{name} {value.interval()}" for name, value in shown.items() if value is not None]
        return f"{where}: {', '.join([*parts, f'{self.unet_evals:,} evaluations', f'{self.seconds:.0f} s'])}"

    @property
    def searched(self) -> bool:
        """Whether exits were looked for: only then does a transition of None say that none protects."""
        return self.basin.width is not None

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Every estimate that was measured, by its name in JSON and log tags."""
        values = {key: value for name in PARTS for key, value in _by_key(getattr(self, name)).items()}
        return {key: value for key, value in values.items() if isinstance(value, Estimate)}

    @classmethod
    def missed(cls, epoch: int, train_step: int, problem: str) -> Report:
        """What a failed probe leaves.

        Example:
            >>> Report.missed(3, 120, "out of memory").samples.risk is None
            True
        """
        return cls(epoch=epoch, train_step=train_step, unet_evals=0, seconds=0.0, problem=problem[:500])

    @model_validator(mode="before")
    @classmethod
    def _group(cls, data: Any) -> Any:
        """The flat form's keys, gathered into their parts."""
        if not isinstance(data, dict):
            return data
        parts = {name: {key: data[key] for key in keys if key in data} for name, keys in KEYS.items()}
        grouped = {*RETIRED, *(key for keys in KEYS.values() for key in keys)}
        own = {key: value for key, value in data.items() if key not in grouped}
        return own | {name: values for name, values in parts.items() if values}

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        flat = {key: value for name in PARTS for key, value in data.pop(name, {}).items()} | data
        return {key: flat[key] for key in JSON_ORDER if key in flat}


def _by_key(part: Part) -> dict[str, Any]:
    return {field.alias or name: getattr(part, name) for name, field in type(part).model_fields.items()}


def measured(history: Sequence[Report]) -> list[Report]:
    """The reports that were not missed, in their order."""
    return [report for report in history if not report.problem]


def last_search(history: Sequence[Report]) -> Report | None:
    """The newest report that looked for exits; its transition stands until another one does."""
    return next((report for report in reversed(history) if report.searched), None)
