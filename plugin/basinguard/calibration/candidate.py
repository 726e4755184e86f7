"""What may be promised: a rule, or a strength of the fine-tune, with what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from numpy.typing import ArrayLike

from ..core import stats
from ..core.estimate import Estimate
from ..core.record import Guidance
from .terms import Setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairScores:
    """A score of every pair, [N], and the pair's prompt, [N]: two rules on the same pairs are compared pair by pair."""

    values: Tensor
    prompt: Tensor

    def estimate(self) -> Estimate:
        """The mean, prompts as clusters."""
        return stats.cluster_bootstrap(self.values, self.prompt)

    def above(self, other: PairScores) -> Estimate:
        """Mean difference to another rule's scores on the same pairs."""
        return stats.cluster_bootstrap(self.values - other.values, self.prompt)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to sample whose risk was measured on (caption, seed) pairs.

    Attributes:
        risk: share of pairs that reproduce a training image.
        p_value: of "the risk is above alpha".
        alignment: agreement of image and caption; None where it was not measured.
        quality: distance of the samples to good images, lower is better; None where it was not measured.
        pair_alignment: the alignment of every pair; not written to files.
        proven: whether the promise covers it; only `fixed_sequence` says so.
    """

    risk: Estimate
    p_value: float
    alignment: Estimate | None = None
    quality: Estimate | None = None
    pair_alignment: PairScores | None = field(default=None, repr=False, compare=False)
    proven: bool = False

    @classmethod
    def measured(cls, hits: ArrayLike, prompt: ArrayLike, alpha: float, **rest: Any) -> Self:
        """From which pairs are copies, [N] bool, and their prompts, [N]; `rest` are the other attributes."""
        risk = stats.rate(hits, prompt)
        return cls(risk=risk, p_value=_p_value(risk, alpha), **rest)

    def retested(self, alpha: float) -> Self:
        """The same measurement as evidence about another alpha; not proven."""
        return replace(self, p_value=_p_value(self.risk, alpha), proven=False)


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def _p_value(risk: Estimate, alpha: float) -> float:
    return stats.binomial_p_value(round(risk.value * risk.n), risk.n, alpha)


@dataclass(frozen=True, kw_only=True)
class RuleCandidate(Candidate):
    """One rule that was tried.

    Attributes:
        guidance: the rule; `after=None` is the probe's scale.
        evals_per_sample: network evaluations one sample takes.
        pilot: measured on pilot pairs only, to decide what to test; never covered by a promise.
    """

    guidance: Guidance
    evals_per_sample: float
    pilot: bool = False

    @property
    def setting(self) -> Setting:
        """The rule without its transition."""
        rule = self.guidance
        return Setting(rule.before, rule.after, rule.refine, rule.anchor)


@dataclass(frozen=True, kw_only=True)
class StrengthCandidate(Candidate):
    """Plain CFG at one strength of the fine-tune, in [0, 1]."""

    strength: float
