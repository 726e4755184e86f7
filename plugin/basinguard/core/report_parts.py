"""What the stages of a probe measured, one part each, and its rows: exits, kinds of caption, training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .estimate import Estimate
from .schema import Finite, Schema, Timestep


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
        risk: share of samples that reproduce a training image; within a budget pooled with those of earlier probes
            (`core.pooled_risk`).
        risk_alone: of this probe's samples alone, where others were pooled with them.
        similarity_p95: to the nearest training image, 95th percentile.
        alignment: agreement of the samples with their captions.
    """

    risk: Estimate | None = None
    similarity_p95: Estimate | None = None
    alignment: Estimate | None = None
    risk_alone: Estimate | None = None

    @property
    def own_risk(self) -> Estimate | None:
        """Of this probe's samples, nothing pooled: what a proof or "samples already copy" rests on."""
        return self.risk_alone or self.risk


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
