"""A round of attacks on several models within a budget: planned before it starts, told while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..basin.trajectories import Pairs
from ..core.attack_table import AttackOutcome, AttackRow, AttackTable, TargetName, Untried
from ..core.progress import say, working
from ..guard.guard import Guard
from .attack import Attack
from .extraction import Extraction, attack_pairs, extract
from .plan import AttackPlan, Attempt, attempts, cost_of
from .registry import ATTACKS, NOT_BUILT
from .target import Attacker, Target

LEAST_MODELS = 2  # the base, without which no result can be read, and the fine-tune
OpenTarget = Callable[[], AbstractContextManager[Target]]
Show = Callable[[Extraction], None]


@dataclass(frozen=True)
class Lineup:
    """The models of a round, opened one at a time.

    Attributes:
        opening: by name, in the order of the table; each opens a target.
        absent: why a model is not there, by its name.
    """

    opening: dict[TargetName, OpenTarget]
    absent: dict[TargetName, str]


def run_round(
    lineup: Lineup, guard: Guard, plan: AttackPlan, attacks: Sequence[Attack] = ATTACKS, show: Show | None = None
) -> AttackTable:
    """Tries every attack on every model.

    Models that a budget does not pay for are left out, the last first; the base and what was fine-tuned from it never.

    Args:
        lineup: the models.
        guard: knows the training images.
        plan: how thorough, at what price.
        attacks: to try.
        show: is given each extraction, to look at.

    Raises:
        ValueError: a budget too small for any attack; says what it takes.
    """
    steps, captions = guard.plan.timesteps, len(guard.training.captions)
    lineup = within(lineup, plan.models(attacks, steps))
    planned, untried = attempts(attacks, plan, steps, models=len(lineup.opening), captions=captions)
    outcomes: dict[Attack, list[AttackOutcome]] = {attempt.attack: [] for attempt in planned}
    most = sum(cost_of(attempt.attack, steps) * attempt.samples for attempt in planned) * len(lineup.opening)
    with working("attacks", most):
        for name, opening in lineup.opening.items():
            with opening() as target:
                for attempt, result in _tried(planned, target, guard, show):
                    if isinstance(result, str):
                        untried.append(Untried(attack=attempt.label, target=name, reason=result))
                    else:
                        outcomes[attempt.attack].append(result)
    rows = (
        AttackRow(attack=attack.name, setting=attack.setting, source=attack.source, outcomes=tuple(results))
        for attack, results in outcomes.items()
        if results
    )
    untried += [Untried(attack="all", target=name, reason=reason) for name, reason in lineup.absent.items()]
    untried += [Untried(attack=name, target="all", reason=f"not built: {what}") for name, what in NOT_BUILT.items()]
    return AttackTable(
        level=plan.level, images_total=len(guard.training.images), rows=tuple(rows), untried=tuple(untried)
    )


def within(lineup: Lineup, models: int) -> Lineup:
    """The first so many models, with the base two at least; the others are absent for want of budget."""
    names = list(lineup.opening)
    most = max(models, LEAST_MODELS if "base" in names else 1)
    paid, unpaid = names[:most], names[most:]
    short = dict.fromkeys(unpaid, "the budget did not pay for it")
    return Lineup({name: lineup.opening[name] for name in paid}, lineup.absent | short)


def _tried(
    planned: Sequence[Attempt], target: Target, guard: Guard, show: Show | None
) -> Iterator[tuple[Attempt, AttackOutcome | str]]:
    """Each attempt on one model: what came out, or why it could not be tried."""
    for place, attempt in enumerate(planned, 1):
        missing = attempt.attack.missing_requirement(target)
        if missing:
            yield attempt, missing
            continue
        pairs = pairs_of(attempt, Attacker(target, guard))
        extraction = extract(attempt.attack, target, guard, pairs)
        outcome = outcome_of(extraction)
        say(f"attack {place} of {len(planned)} on {target.name}: {attempt.label}: {outcome_text(outcome)}")
        if show is not None:
            show(extraction)
        yield attempt, outcome


def pairs_of(attempt: Attempt, attacker: Attacker) -> Pairs:
    """What an attempt draws."""
    attack = attempt.attack
    return attack_pairs(attacker, ATTACKS.index(attack), attempt.samples, attack.per_caption)


def outcome_of(extraction: Extraction) -> AttackOutcome:
    """What of an extraction goes into a table."""
    return AttackOutcome(
        target=extraction.target,  # type: ignore[arg-type]
        copies=extraction.copies,
        images=len(extraction.images),
        evaluations=extraction.evaluations,
        note=extraction.note,
    )


def outcome_text(outcome: AttackOutcome) -> str:
    """An outcome in a few words."""
    note = f"; {outcome.note}" if outcome.note else ""
    return f"copies {outcome.copies.percent()}, {outcome.images} images{note}, {outcome.evaluations} evaluations"
