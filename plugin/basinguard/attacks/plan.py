"""How thorough a round of attacks is, and what it may cost; settled before the first sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from ..core.attack_table import Level, Untried
from .attack import Attack

SAMPLES: dict[Level, int] = {"quick": 48, "full": 192}  # of each attack on each model
LEAST = 8  # samples below which an attack is not worth a row


@dataclass(frozen=True)
class AttackPlan:
    """How thorough a round is.

    Attributes:
        level: "quick" tries every family once, "full" every setting with four times the samples.
        budget: most UNet evaluations of the whole round; 0 for as many as the level takes.

    Raises:
        ValueError: no such level, or a negative budget.
    """

    level: Level = "quick"
    budget: int = 0

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"attack={self.level!r}: expected {' or '.join(get_args(Level))}")
        if self.budget < 0:
            raise ValueError(f"attack_budget={self.budget}: expected a number of UNet evaluations, or 0 for no limit")


@dataclass(frozen=True)
class Attempt:
    """An attack and how many (caption, seed) pairs it draws of each model, each as often as it wants."""

    attack: Attack
    samples: int

    @property
    def label(self) -> str:
        """The attack with its setting."""
        return f"{self.attack.name} ({self.attack.setting})"


def attempts(
    attacks: Sequence[Attack], plan: AttackPlan, steps: int, models: int, captions: int
) -> tuple[list[Attempt], list[Untried]]:
    """What is tried, with how many samples, and what is not.

    Every attack gets the same number of samples, as many as the budget pays for.

    Args:
        attacks: all there are.
        plan: how thorough.
        steps: of the sampler.
        models: that are attacked.
        captions: of the training images; each gets equally many samples, unless there are fewer samples than captions.

    Raises:
        ValueError: the budget cannot pay for the least of every chosen attack; says what it takes.
    """
    chosen = [attack for attack in attacks if attack.quick or plan.level == "full"]
    left = [attack for attack in attacks if attack not in chosen]
    samples = affordable(sum(cost_of(attack, steps) for attack in chosen) * models, plan)
    samples -= samples % captions if samples > captions else 0
    untried = [
        Untried(attack=f"{attack.name} ({attack.setting})", target="all", reason="of the full round") for attack in left
    ]
    return [Attempt(attack, samples) for attack in chosen], untried


def cost_of(attack: Attack, steps: int) -> int:
    """Network evaluations of an attack for each (caption, seed) pair."""
    return attack.cost(steps) * attack.per_caption


def affordable(per_sample: int, plan: AttackPlan) -> int:
    """Samples of each attack that a budget pays for, where one of each on each model costs `per_sample`.

    Raises:
        ValueError: fewer than `LEAST`.

    Example:
        >>> affordable(1000, AttackPlan("quick", 20_000)), affordable(1000, AttackPlan("quick"))
        (20, 48)
    """
    samples = min(SAMPLES[plan.level], plan.budget // per_sample) if plan.budget else SAMPLES[plan.level]
    if samples < LEAST:
        raise ValueError(
            f"attack_budget={plan.budget}: too small for anything: {LEAST} samples of each attack on each model take "
            f"{LEAST * per_sample} UNet evaluations; give at least that, or 0 for the whole {plan.level} round "
            f"({SAMPLES[plan.level] * per_sample})"
        )
    return samples
