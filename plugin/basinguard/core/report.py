"""TODO one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

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


class Group(Schema):
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


class Report(Schema):
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
