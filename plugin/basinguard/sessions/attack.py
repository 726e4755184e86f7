"""Our own exports attacked: the base model, the plain fine-tune, the guarded product in two ways, the safe weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..attacks.plan import AttackPlan
from ..attacks.round import Lineup, OpenTarget, Show, run_round
from ..attacks.target import Target
from ..calibration.weights import Weights
from ..core.attack_table import AttackTable, TargetName
from ..core.record import Record
from ..guidance.core import Rule, from_record
from ..pipelines.base_check import require_base
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from .calibration import weights_of
from .session import Session


@dataclass(frozen=True)
class Arsenal:
    """What targets are made of.

    Attributes:
        weights: of the fine-tune, or of an export.
        base: the base model, which the attacker has too.
        baked: share of the fine-tune that these weights hold already: an export's own strength.
    """

    weights: Weights
    base: LatentModel | None
    baked: float = 1.0

    def of(self, name: TargetName, strength: float, rule: Rule | None = None) -> OpenTarget:
        """The fine-tune at a strength, with a rule or without.

        From a share and the base the whole is worked out: base + (share - base) / strength. Anybody can.
        """
        relative = 1.0 if strength == self.baked else strength / self.baked

        @contextmanager
        def opened() -> Iterator[Target]:
            with self.weights.at(None, relative) as weights:
                yield Target(name, weights.model, rule, self.base)

        return opened

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
    strength, share = record.product.strength, record.strength
    if arsenal.base is None:
        absent["base"] = "the base model was not given"
    else:
        opening["base"] = arsenal.of_base()
    if arsenal.baked == 0 or (arsenal.baked != 1 and arsenal.base is None):
        absent["plain"] = "the whole fine-tune cannot be worked out: its share is 0, or the base was not given"
    else:
        opening["plain"] = arsenal.of("plain", 1.0)
    if record.guidance.anchor or record.guidance.refine > 1:
        absent["guarded"] = "its rule is more than a choice of scales"
    elif record.guidance.plain and record.scale == record.sampler.scale:
        absent["guarded"] = "its rule is plain CFG at the usual scale: it samples as its plain weights do"
    else:
        opening["guarded"] = arsenal.of("guarded", strength, from_record(record.model_dump()))
    if strength == 1:
        absent["guarded, as plain weights"] = "the same weights as the plain export's"
    else:
        opening["guarded, as plain weights"] = arsenal.of("guarded, as plain weights", strength)
    if share is None or not share.promise:
        absent["safe weights"] = "no strength was proven safe for plain loaders"
    elif share.value in (strength, 1.0):
        absent["safe weights"] = "the same weights as those above"
    else:
        opening["safe weights"] = arsenal.of("safe weights", share.value)
    return Lineup(opening, absent)


def attack_session(session: Session, record: Record, plan: AttackPlan, show: Show | None = None) -> AttackTable:
    """Attacks an open model and what a record would ship of it.

    Args:
        session: the model with its training images.
        record: what ships.
        plan: how thorough, at what price.
        show: is given each extraction, to look at.

    Raises:
        ValueError: a base that is not the model's, or a budget too small for anything.
    """
    table = run_round(lineup_of(arsenal_of(session), record), session.guard, plan, show=show)
    return table.model_copy(update={"strength": record.product.strength})


def arsenal_of(session: Session) -> Arsenal:
    """The fine-tune's shares and the base model; a session that has a record is an export at its strength.

    Raises:
        ValueError: a base that the model was not fine-tuned from.
    """
    name, baked = session.provenance.base, session.record.product.strength if session.record else 1.0
    if not name:
        return Arsenal(weights_of(session), None, baked)
    base: Any = load_pipeline(name)
    require_base(session.pipe, base, name)
    return Arsenal(weights_of(session), LatentModel(base), baked)
