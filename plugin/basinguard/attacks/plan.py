"""How thorough a round of attacks is, and what it may cost; settled before the first sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.attack_table import TARGETS, Level, Untried
from .attack import Attack
from .options import AttackOptions

SAMPLES: dict[Level, int] = {"quick": 48, "full": 192}  # of each attack on each model
LEAST = 8  # samples below which an attack is not worth a row
MOST_MODELS = len(TARGETS)


@dataclass(frozen=True)
class AttackPlan:
    """How thorough a round is.

    Attributes:
        level: "quick" tries every family once, "full" every setting with four times the samples.
        budget: most UNet evaluations of the whole round; 0 for as many as the level takes.
    """

    level: Level = "quick"
    budget: int = 0

    @classmethod
    def of(cls, options: AttackOptions) -> AttackPlan | None:
        """What is asked for; None where nothing is."""
        return None if options.attack == "none" else cls(options.attack, options.attack_budget)

    def chosen(self, attacks: Sequence[Attack]) -> list[Attack]:
        """Those of the level."""
        return [attack for attack in attacks if attack.quick or self.level == "full"]

    def models(self, attacks: Sequence[Attack], steps: int) -> int:
        """How many models the budget pays for at the least samples; as many as there are where it has no end."""
        return self.budget // (LEAST * per_sample(self.chosen(attacks), steps)) if self.budget else MOST_MODELS


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
    chosen = plan.chosen(attacks)
    left = [attack for attack in attacks if attack not in chosen]
    samples = affordable(per_sample(chosen, steps) * models, plan)
    samples -= samples % captions if samples > captions else 0
    untried = [
        Untried(attack=f"{attack.name} ({attack.setting})", target="all", reason="of the full round") for attack in left
    ]
    return [Attempt(attack, samples) for attack in chosen], untried


def cost_of(attack: Attack, steps: int) -> int:
    """Network evaluations of an attack for each (caption, seed) pair."""
    return attack.cost(steps) * attack.per_caption


def per_sample(attacks: Sequence[Attack], steps: int) -> int:
    """Network evaluations of all of them for one pair on one model."""
    return sum(cost_of(attack, steps) for attack in attacks)


def affordable(cost: int, plan: AttackPlan) -> int:
    """Samples of each attack that a budget pays for, where one of each on each model costs so many evaluations.

    Raises:
        ValueError: fewer than `LEAST`.

    Example:
        >>> affordable(1000, AttackPlan("quick", 20_000)), affordable(1000, AttackPlan("quick"))
        (20, 48)
    """
    samples = min(SAMPLES[plan.level], plan.budget // cost) if plan.budget else SAMPLES[plan.level]
    if samples < LEAST:
        raise ValueError(
            f"attack_budget={plan.budget}: too small for anything: {LEAST} samples of each attack on each model take "
            f"{LEAST * cost} UNet evaluations; give at least that, or 0 for the whole {plan.level} round "
            f"({SAMPLES[plan.level] * cost})"
        )
    return samples
