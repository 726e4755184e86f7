"""Which weights a record is about: an epoch, and how much of its fine-tune, perhaps by timestep."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .schema import Schema, Timestep
from .update_filter import update_filter

MOST_TRANSITIONS = 100  # far more than a sampler has steps to tell apart


class RecordedSchedule(Schema):
    """Shares of a fine-tune by timestep: a staircase from high noise to low; `guidance.strength` applies it.

    Attributes:
        transitions: training timesteps in [0, 999], strictly falling; 1 to 100 of them.
        strengths: in [0, 1], one more than transitions: the first above the first transition, the next at and below it.
    """

    transitions: Annotated[tuple[Timestep, ...], Field(min_length=1, max_length=MOST_TRANSITIONS)]
    strengths: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.strengths) != len(self.transitions) + 1:
            raise ValueError(
                f"{len(self.strengths)} strengths for {len(self.transitions)} transitions: expected one strength more"
            )
        if any(high <= low for high, low in pairwise(self.transitions)):
            raise ValueError(f"transitions {self.transitions}: expected strictly falling timesteps")
        return self

    def __str__(self) -> str:
        first, *rest = self.strengths
        falls = (f", {share:g} from {at:g} down" for at, share in zip(self.transitions, rest, strict=True))
        return f"{first:g} at high noise{''.join(falls)}"


class RecordedWeights(Schema):
    """Which weights a record is about.

    Attributes:
        epoch, train_step: of the run they come from; None for a model that was given as it is.
        strength: share of the fine-tune in them, in [0, 1]; they are base + strength * filter(tuned - base).
        kind: what carries the share: a "lora" scaled by it, or an "interpolation" of whole weights.
        tuned_sha256: fingerprint of the whole fine-tune of that epoch; "" where these weights are that.
        strength_schedule: the share by timestep of the denoiser's part of a LoRA, whose `strength` is then 1; None
            where it is the same everywhere.
        update_filter: by name, what is left of the change of the denoiser; "" where all of it is.
    """

    epoch: int | None = None
    train_step: int | None = None
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    kind: Literal["lora", "interpolation"] = "interpolation"
    tuned_sha256: str = ""
    strength_schedule: RecordedSchedule | None = None
    update_filter: str = ""

    @property
    def whole(self) -> bool:
        """Whether they hold all of the fine-tune: no share of it, and nothing filtered out."""
        return self.strength == 1 and not self.update_filter

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        if self.strength_schedule is not None and (self.strength, self.kind) != (1, "lora"):
            raise ValueError(
                f"a strength_schedule with strength {self.strength:g} of kind {self.kind!r}: "
                "it is of a LoRA of strength 1"
            )
        return self

    @model_validator(mode="after")
    def _one_edit(self) -> Self:
        if self.update_filter:
            update_filter(self.update_filter)
            require_no_schedule(self.update_filter, self.strength_schedule)
        return self


def require_no_schedule(name: str, schedule: RecordedSchedule | None) -> None:
    """Refuses a filter beside a strength by timestep.

    Raises:
        ValueError: there are both.
    """
    if name and schedule is not None:
        raise ValueError(
            f"update_filter {name!r} with a strength_schedule: a filter is of merged weights, which have one strength; "
            "take either"
        )
