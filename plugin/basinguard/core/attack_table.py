"""What was tried to get the training images out, what came out, and what was not tried: goes to record and card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .estimate import Estimate
from .schema import Schema

Level = Literal["quick", "full"]
TargetName = Literal["base", "plain", "guarded", "guarded, as plain weights", "safe weights"]
TARGETS: dict[TargetName, str] = {
    "base": "base model",
    "plain": "plain export",
    "guarded": "guarded, by its rule",
    "guarded, as plain weights": "guarded, as plain weights",
    "safe weights": "safe weights",
}
Text = Annotated[str, Field(max_length=300)]


class AttackOutcome(Schema):
    """One attack on one model.

    Attributes:
        target: which.
        copies: share of samples that are copies, by the record's copy detector.
        images: how many training images came back.
        evaluations: of the UNet, all samples together.
        note: what the attacker could tell without the training images; "" where nothing.
    """

    target: TargetName
    copies: Estimate
    images: Annotated[int, Field(ge=0)]
    evaluations: Annotated[int, Field(ge=0)]
    note: Text = ""


class AttackRow(Schema):
    """One attack at one setting, on each model.

    Attributes:
        attack, setting, source: which.
        outcomes: one for each model that it was tried on.
    """

    attack: Text
    setting: Text
    source: Text
    outcomes: tuple[AttackOutcome, ...]

    def outcome(self, target: str) -> AttackOutcome | None:
        """What came out of a model; None where it was not tried on it."""
        return next((outcome for outcome in self.outcomes if outcome.target == target), None)

    @property
    def evaluations(self) -> int:
        """Of the UNet, on the model that took most."""
        return max(outcome.evaluations for outcome in self.outcomes)

    @property
    def telling(self) -> bool:
        """Whether a copy means that the fine-tune knows the image: the base model gives none away by it."""
        base = self.outcome("base")
        return base is not None and base.copies.value == 0


class Untried(Schema):
    """An attack that was not tried, on which model, and why."""

    attack: Text
    target: Text
    reason: Text


class AttackTable(Schema):
    """Every attack of a round.

    Attributes:
        level: how thorough the round was.
        images_total: training images that could have come back.
        strength: share of the fine-tune in the product's weights; 1 in records of before.
        rows: what was tried.
        untried: what was not, and why.
    """

    level: Level
    images_total: Annotated[int, Field(ge=1)]
    rows: tuple[AttackRow, ...]
    untried: tuple[Untried, ...] = ()
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0

    @property
    def evaluations(self) -> int:
        """Of the UNet, all together."""
        return sum(outcome.evaluations for row in self.rows for outcome in row.outcomes)

    @property
    def targets(self) -> tuple[str, ...]:
        """Models that something was tried on, in order."""
        present = {outcome.target for row in self.rows for outcome in row.outcomes}
        return tuple(name for name in TARGETS if name in present)
