"""Our own exports attacked: the base model, the plain fine-tune, the guarded product in two ways, the safe weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from ..attacks.membership import SHARE, MembershipTest, require_controls
from ..attacks.operating_point import controls_needed
from ..attacks.options import AttackOptions
from ..attacks.plan import MOST_MODELS, SAMPLES, AttackPlan, affordable, per_sample
from ..attacks.registry import ATTACKS
from ..attacks.round import LEAST_MODELS, Lineup, OpenTarget, Show, run_round
from ..attacks.target import Target
from ..calibration.weights import OpenWeights, Weights, product_weights
from ..core.attack_table import TargetName
from ..core.membership_table import MembershipTable
from ..core.progress import say, working
from ..core.record import Record
from ..core.recorded_weights import RecordedWeights
from ..guard.guard import Guard
from ..guidance.core import Rule, from_record
from ..pipelines.latent_model import LatentModel
from .calibration import base_of, weights_of
from .session import Session


@dataclass(frozen=True)
class Arsenal:
    """What targets are made of.

    Attributes:
        weights: of the fine-tune, or of an export.
        base: the base model, which the attacker has too.
        baked: share of the fine-tune that these weights hold already: an export's own strength.
        filtered: by name, what is left of its change in them already: an export's own filter; "" for all of it.
    """

    weights: Weights
    base: LatentModel | None
    baked: float = 1.0
    filtered: str = ""

    def of(self, name: TargetName, strength: float, rule: Rule | None = None, *, update_filter: str = "") -> OpenTarget:
        """The fine-tune at a strength, or what a filter leaves of it, with a rule or without.

        From a share and the base the whole is worked out: base + (share - base) / strength. Anybody can. What a filter
        took cannot be.
        """
        relative = 1.0 if strength == self.baked else strength / self.baked
        left = "" if self.filtered else update_filter

        @contextmanager
        def opened() -> Iterator[Target]:
            with self._weights(relative, left) as weights:
                yield Target(name, weights.model, rule, self.base)

        return opened

    def _weights(self, strength: float, update_filter: str) -> AbstractContextManager[OpenWeights]:
        """Of these weights a share, which may be above 1, or what a filter leaves of a share up to 1."""
        if not update_filter:
            return self.weights.at(None, strength)
        return product_weights(self.weights, RecordedWeights(strength=strength, update_filter=update_filter))

    def of_base(self) -> OpenTarget:
        """The base model."""

        @contextmanager
        def opened() -> Iterator[Target]:
            yield Target("base", self.base, None, self.base)

        return opened


def lineup_of(arsenal: Arsenal, record: Record) -> Lineup:
    """The five models of the table, and why one of them is not there: what is the same as another is attacked once."""
    opening: dict[TargetName, OpenTarget] = {}
    absent: dict[TargetName, str] = {}
    strength, share, left = record.product.strength, record.strength, record.product.update_filter
    if arsenal.base is None:
        absent["base"] = "the base model was not given"
    else:
        opening["base"] = arsenal.of_base()
    if arsenal.baked == 0 or (arsenal.baked != 1 and arsenal.base is None):
        absent["plain"] = "the whole fine-tune cannot be worked out: its share is 0, or the base was not given"
    elif arsenal.filtered:
        absent["plain"] = "the whole fine-tune cannot be worked out: a filter left a part of its change out"
    else:
        opening["plain"] = arsenal.of("plain", 1.0)
    if record.guidance.anchor or record.guidance.refine > 1:
        absent["guarded"] = "its rule is more than a choice of scales"
    elif record.product.strength_schedule is not None:
        absent["guarded"] = "its strength depends on the timestep, which is not followed here"
    elif record.guidance.plain and record.scale == record.sampler.scale:
        absent["guarded"] = "its rule is plain CFG at the usual scale: it samples as its plain weights do"
    else:
        rule = from_record(record.model_dump())
        opening["guarded"] = arsenal.of("guarded", strength, rule, update_filter=left)
    if record.product.whole:
        absent["guarded, as plain weights"] = "the same weights as the plain export's"
    else:
        opening["guarded, as plain weights"] = arsenal.of("guarded, as plain weights", strength, update_filter=left)
    if share is None or not share.promise:
        absent["safe weights"] = "no strength was proven safe for plain loaders"
    elif share.value in (strength, 1.0):
        absent["safe weights"] = "the same weights as those above"
    else:
        opening["safe weights"] = arsenal.of("safe weights", share.value)
    return Lineup(opening, absent)


def require_attackable(session: Session, options: AttackOptions) -> None:
    """Refuses now what could not be tried after an hour of calibration.

    Raises:
        ValueError: a base that is not the model's, no held-out images, or a budget too small for anything.
    """
    if options.nothing:
        return
    if options.membership:
        require_controls(session.guard.training)
    if plan := AttackPlan.of(options):
        models = LEAST_MODELS if session.provenance.base else 1
        affordable(per_sample(plan.chosen(ATTACKS), session.guard.plan.timesteps) * models, plan)
    base_of(session)


def attack_evaluations(session: Session, options: AttackOptions) -> dict[str, int]:
    """What is tried in words, and the network evaluations that it takes at most: on every model there may be."""
    guard, base = session.guard, bool(session.provenance.base)
    models, evaluations = MOST_MODELS if base else 2, {}
    if plan := AttackPlan.of(options):
        whole = SAMPLES[plan.level] * per_sample(plan.chosen(ATTACKS), guard.plan.timesteps) * models
        evaluations[f"for attacks on up to {models} models"] = min(plan.budget or whole, whole)
    if options.membership:
        others = models - 2 if base else 1  # the base is asked once, and a rule plays no part
        evaluations["for membership"] = MembershipTest(guard, base or None).most_evaluations(others)
    return evaluations


def attacked_record(session: Session, record: Record, options: AttackOptions, show: Show | None = None) -> Record:
    """Attacks an open model and what a record would ship of it; the record with what came out.

    Args:
        session: the model with its training images.
        record: what ships.
        options: what is tried, how thoroughly.
        show: is given each extraction, to look at.

    Raises:
        ValueError: as of `require_attackable`.
    """
    arsenal = arsenal_of(session)
    lineup = lineup_of(arsenal, record)
    update: dict[str, Any] = {}
    if plan := AttackPlan.of(options):
        table = run_round(lineup, session.guard, plan, show=show)
        update["attacks"] = table.model_copy(update={"strength": record.product.strength})
    if options.membership:
        update["membership"] = membership_tables(arsenal, lineup, session.guard)
    return record.model_copy(update=update)


def membership_tables(arsenal: Arsenal, lineup: Lineup, guard: Guard) -> tuple[MembershipTable, ...]:
    """Membership by the weights of each model but the base; a rule plays no part in it."""
    test = MembershipTest(guard, arsenal.base)
    names = [name for name in lineup.opening if name not in ("base", "guarded")]
    if test.controls < controls_needed(SHARE):
        say(f"{test.controls} held-out images: no true positives at 1 %, which takes {controls_needed(SHARE)}")
    tables = []
    with working("membership", test.most_evaluations(len(names))):
        for name in names:
            with lineup.opening[name]() as target:
                tables.append(test.table(name, target.model))
    return tuple(tables)


def arsenal_of(session: Session) -> Arsenal:
    """The fine-tune's shares and the base model; a session that has a record is an export at its strength.

    Raises:
        ValueError: a base that the model was not fine-tuned from.
    """
    base = base_of(session)
    product = session.record.product if session.record else RecordedWeights()
    base_model = None if base is None else LatentModel(base)
    return Arsenal(weights_of(session), base_model, product.strength, product.update_filter)
