"""What an audit tries to get out of a model, as a command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

AttackLevel = Literal["none", "quick", "full"]


@dataclass(frozen=True)
class AttackOptions:
    """What else than sampling is tried.

    Attributes:
        attack: also try to get the images out of the base model, of this one and of what would ship: "quick" tries
            every family of attacks, "full" every setting with four times the samples. An export is attacked by its own
            record, which goes to attacked.json with the table.
        attack_budget: most UNet evaluations of that; 0 for as many as it takes.
        membership: also ask of each image whether it can be told that the model was trained on it; needs held-out
            images (`heldout`).

    Raises:
        ValueError: no such level, a negative budget, or a budget of no attack.
    """

    attack: AttackLevel = "none"
    attack_budget: int = 0
    membership: bool = False

    def __post_init__(self) -> None:
        if self.attack not in get_args(AttackLevel):
            raise ValueError(f"attack={self.attack!r}: expected {', '.join(get_args(AttackLevel))}")
        if self.attack_budget < 0:
            raise ValueError(
                f"attack_budget={self.attack_budget}: expected a number of UNet evaluations, or 0 for no limit"
            )
        if self.attack_budget and self.attack == "none":
            raise ValueError(f"attack_budget={self.attack_budget} without an attack: give attack quick or full as well")

    @property
    def nothing(self) -> bool:
        """Whether nothing is tried."""
        return self.attack == "none" and not self.membership
