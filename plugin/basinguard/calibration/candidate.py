"""What may be promised: a product (epoch, strength, rule or plain CFG, scale), with what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from numpy.typing import ArrayLike
from scipy.stats import binom

from ..core import stats
from ..core.estimate import Estimate
from ..core.record import Guidance
from ..core.recorded_weights import RecordedSchedule, require_no_schedule
from ..core.text import epoch_name
from .design import Design
from .terms import Setting

if TYPE_CHECKING:
    from torch import Tensor

    from ..similarity.taught import Taught

IMPROBABLE = 0.2
Phase = Literal["search", "ranking", "proof"]


@dataclass(frozen=True)
class Candidate:
    """A way to sample whose risk was measured on (caption, seed) pairs.

    Attributes:
        risk: share of pairs that reproduce a training image.
        p_value: of "the risk is above alpha".
        proven: whether the promise covers it; only `fixed_sequence` says so.
        design: how many pairs it was to be measured on; None for those that it was.
    """

    risk: Estimate
    p_value: float
    proven: bool = False
    design: Design | None = None

    @classmethod
    def measured(
        cls, hits: ArrayLike, prompt: ArrayLike, alpha: float, design: Design | None = None, **rest: Any
    ) -> Self:
        """From which pairs are copies, [N] bool, and their prompts, [N]; `rest` are the other attributes."""
        risk = stats.rate(hits, prompt)
        risk = design.interval(risk) if design else risk
        return cls(risk=risk, p_value=_p_value(risk, alpha, design), design=design, **rest)

    def retested(self, alpha: float) -> Self:
        """The same measurement as evidence about another alpha; not proven."""
        return replace(self, p_value=_p_value(self.risk, alpha, self.design), proven=False)


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def _p_value(risk: Estimate, alpha: float, design: Design | None) -> float:
    return (design or Design(risk.n)).p_value(round(risk.value * risk.n), risk.n, alpha)


@dataclass(frozen=True)
class PairScores:
    """A score of every pair, [N], and the pair's prompt, [N]: two products on the same pairs are compared by pair."""

    values: Tensor
    prompt: Tensor

    def estimate(self) -> Estimate:
        """The mean, prompts as clusters."""
        return stats.cluster_bootstrap(self.values, self.prompt)

    def above(self, other: PairScores) -> Estimate:
        """Mean difference to another product's scores, on the pairs that both were measured on: the first ones."""
        n = min(len(self.values), len(other.values))
        return stats.cluster_bootstrap(self.values[:n] - other.values[:n], self.prompt[:n])


@dataclass(frozen=True)
class Product:
    """What can be shipped: weights, and how to sample them.

    Attributes:
        guidance: the rule, or plain CFG (`Guidance.plain`); its `after` is a number here.
        strength: share of the fine-tune in the weights, in [0, 1]; 0 is the base model.
        epoch: whose fine-tune; None for a model that is given as it is.
        strength_schedule: of the denoiser, by timestep, `strength` being 1; None where it is the same everywhere.
        update_filter: by name, what is left of the change of the denoiser, see `core.update_filter`; "" for all of it.

    Raises:
        ValueError: a filter with a strength by timestep.
    """

    guidance: Guidance
    strength: float = 1.0
    epoch: int | None = None
    strength_schedule: RecordedSchedule | None = None
    update_filter: str = ""

    def __post_init__(self) -> None:
        require_no_schedule(self.update_filter, self.strength_schedule)

    @property
    def whole(self) -> bool:
        """Whether its weights hold all of the fine-tune: no share of it, and nothing filtered out."""
        return self.strength == 1 and not self.update_filter

    @property
    def plain(self) -> bool:
        """Whether it is plain CFG with weights that stay as they are: nothing that a loader must apply."""
        return self.guidance.plain and self.strength_schedule is None

    @property
    def scale(self) -> float:
        """Guidance scale once guidance is on."""
        assert self.guidance.after is not None
        return self.guidance.after

    @property
    def setting(self) -> Setting:
        """The rule without its transition."""
        rule = self.guidance
        return Setting(rule.before, rule.after, rule.refine, rule.anchor)

    @property
    def stock(self) -> bool:
        """Whether an unmodified pipeline can apply it."""
        return self.guidance.refine == 1 and not self.guidance.anchor

    @property
    def rule(self) -> str:
        """How it is sampled, in words."""
        rule = self.guidance
        if rule.plain:
            return "plain CFG"
        finer = f", {rule.refine} times finer" if rule.refine > 1 else ""
        return f"{rule.before:g} above {rule.transition:g}{finer}{', anchored' if rule.anchor else ''}"

    def __str__(self) -> str:
        if self.strength == 0:
            return f"base model, {self.rule}, scale {self.scale:g}"
        epoch = "" if self.epoch is None else f"{epoch_name(self.epoch)}, "
        strength = f"{self.strength:g}" if self.strength_schedule is None else str(self.strength_schedule)
        filtered = f", {self.update_filter}" if self.update_filter else ""
        return f"{epoch}strength {strength}{filtered}, {self.rule}, scale {self.scale:g}"


@dataclass(frozen=True, kw_only=True)
class ProductCandidate(Candidate):
    """A product that was tried.

    Attributes:
        product: what.
        phase: "search" and "ranking" decide what is tested and are never covered by a promise; "proof" is.
        evals_per_sample: network evaluations one sample takes.
        nearest: similarity of the samples to the nearest training image, 95th percentile: orders what copies nothing.
        similarities: of every sample to the nearest training image, in the order they came.
        taught: of the same samples of training captions, net of copies; None where it cannot be measured.
        subjects: the same of each subject of a set of several, by its name; names are words of the user's captions,
            and are not written to files.
        alignment: agreement of image and caption; None where it was not measured.
        pair_alignment: the alignment of every pair; not written to files.
    """

    product: Product
    phase: Phase
    evals_per_sample: float
    nearest: float
    similarities: tuple[float, ...] = field(default=(), repr=False, compare=False)
    taught: Taught | None = field(default=None, repr=False, compare=False)
    subjects: Mapping[str, Taught] = field(default_factory=dict, repr=False, compare=False)
    alignment: Estimate | None = None
    pair_alignment: PairScores | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        taught = f", taught {self.left.value:.2f}" if self.left else ""
        return f"{self.product}: risk {self.risk.value:.2f} of {self.risk.n}{taught}"

    @property
    def left(self) -> Estimate | None:
        """What is left of what was taught; None where it was not measured or cannot be resolved."""
        return None if self.taught is None else self.taught.value

    @property
    def gain(self) -> float:
        """How much of what was taught it keeps; without that ruler alignment, without that how bold it is."""
        measured = self.left or self.alignment
        if measured is not None:
            return measured.value
        rule = self.product.guidance
        return self.product.strength + (1.0 if rule.plain else rule.transition / 1000)


def too_many(copies: int, n: int, alpha: float) -> bool:
    """Whether so many copies, or more, are improbable where the risk is alpha: a proof is not worth its samples.

    Example:
        >>> too_many(3, 16, alpha=0.1), too_many(4, 16, alpha=0.1)
        (False, True)
    """
    return bool(binom.sf(copies - 1, n, alpha) < IMPROBABLE)


def hopeless(candidate: ProductCandidate, alpha: float) -> bool:
    """Whether a proof is not worth its samples: so many copies are improbable where the risk is alpha."""
    return too_many(round(candidate.risk.value * candidate.risk.n), candidate.risk.n, alpha)


def strongest(candidates: Sequence[ProductCandidate], alpha: float, most: int) -> list[ProductCandidate]:
    """Those with the most gain that may keep the risk."""
    return sorted((c for c in candidates if not hopeless(c, alpha)), key=lambda c: -c.gain)[:most]


def by_kind(candidates: Sequence[ProductCandidate]) -> tuple[list[ProductCandidate], list[ProductCandidate]]:
    """Products of plain CFG, and those with a rule or a strength by timestep, which a loader must apply."""
    plain, ruled = ([c for c in candidates if c.product.plain == kind] for kind in (True, False))
    return plain, ruled


def of_phase(tried: Sequence[ProductCandidate], phase: Phase) -> list[ProductCandidate]:
    """Those of a phase."""
    return [candidate for candidate in tried if candidate.phase == phase]
