"""What a guarded run can be told, besides its probe plan and its calibration terms; plain values, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

BreachAction = Literal["warn", "stop", "act"]
OnError = Literal["warn", "raise"]
ShippedEpoch = Literal["best", "last"]
Watched = Literal["plain", "guarded"]


@dataclass(frozen=True)
class ControlGroup:
    """What the model is not trained on: a rise that training images and control share is no memorization.

    Args:
        heldout: prompts. Up to 8, recombined from the training captions, stand in for the early alarms when none are
            given, at one evaluation each; an empty list does without.
        folder: captioned images instead: their captions are the held-out prompts, and they are also the control group
            of critical scales.

    Raises:
        ValueError: both are given, or one text in place of a list of them.
    """

    heldout: Sequence[str] | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.heldout, str):
            raise ValueError(f"ControlGroup(heldout={self.heldout!r}): expected a list of prompts")
        if self.heldout and self.folder:
            raise ValueError(
                f"ControlGroup(heldout={list(self.heldout)}, folder={self.folder!r}): the folder's captions are the "
                "held-out prompts; give one of them"
            )
        if self.heldout is not None:
            object.__setattr__(self, "heldout", tuple(self.heldout))


@dataclass(frozen=True)
class Interventions:
    """What may be done to a run that memorizes; nothing by default.

    An option acts from the first breach on (filters from the start if so asked); what it has done goes into the
    checkpoint, so a resumed run goes on with it. `recipes/results/acting_study.md` says what each was measured to do on
    TinyWorld, "no effect" included.

    Args:
        rest: share of its turns, in [0, 1), that an image found memorized keeps; other images take the rest, so updates
            stay as many. 0 leaves it out until it is no longer found.
        vary_captions: draw among all captions of an image found memorized, each time anew, instead of its first
            (multiple captions: Somepalli et al., arXiv 2305.20086, section 6).
        learning_rate: factor in (0, 1) by which the learning rate is multiplied at each probe that finds a breach.
        low_loss: leave out examples whose loss times this is below what is usual at their timestep
            (IET-AGC, arXiv 2407.15328; 2 there), see `loss_filters.LowLoss`.
        large_gap: leave out examples whose gap is above this (Wen et al., arXiv 2407.21720), see
            `loss_filters.LargeGap`.
        filters_from: whether the two filters work from the "start" of training or from the first "breach".

    Raises:
        ValueError: a number out of range, or nothing to do.
    """

    rest: float | None = None
    vary_captions: bool = False
    learning_rate: float | None = None
    low_loss: float | None = None
    large_gap: float | None = None
    filters_from: Literal["start", "breach"] = "start"

    def __post_init__(self) -> None:
        for name, value, good in (
            ("rest", self.rest, lambda v: 0 <= v < 1),
            ("learning_rate", self.learning_rate, lambda v: 0 < v < 1),
            ("low_loss", self.low_loss, lambda v: v > 1),
            ("large_gap", self.large_gap, lambda v: v > 0),
        ):
            if value is not None and not good(value):
                raise ValueError(
                    f"Interventions({name}={value}): expected rest in [0, 1), learning_rate in (0, 1), low_loss above "
                    "1, large_gap above 0"
                )
        if not (self.rests_images or self.filters_losses or self.learning_rate):
            raise ValueError(
                "Interventions(): nothing to do; ask for rest, vary_captions, learning_rate, low_loss, large_gap"
            )

    @property
    def rests_images(self) -> bool:
        """Whether images found memorized are treated otherwise."""
        return self.rest is not None or self.vary_captions

    @property
    def filters_losses(self) -> bool:
        """Whether examples are left out by their loss or gap."""
        return self.low_loss is not None or self.large_gap is not None


@dataclass(frozen=True)
class BreachResponse:
    """What happens when the risk is surely above `ProbePlan.alpha`. Missing evidence stops nothing.

    Args:
        action: "warn", "stop" the fit after the epoch, or "act" as `interventions` says.
        watches: whose risk counts: that of "plain" CFG, or that of "guarded" sampling, which comes later.
        interventions: what "act" does.

    Raises:
        ValueError: "act" without interventions, interventions without "act", or an unknown word.
    """

    action: BreachAction = "warn"
    watches: Watched = "plain"
    interventions: Interventions | None = None

    def __post_init__(self) -> None:
        if self.action not in get_args(BreachAction) or (self.action == "act") != (self.interventions is not None):
            raise ValueError(
                f"BreachResponse(action={self.action!r}, interventions={self.interventions}): expected warn, stop, "
                "or act together with an Interventions(...) that says what to do"
            )
        if self.watches not in get_args(Watched):
            raise ValueError(f"BreachResponse(watches={self.watches!r}): expected plain or guarded")
