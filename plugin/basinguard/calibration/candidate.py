"""TODO one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..core import stats
from ..core.estimate import Estimate


@dataclass(frozen=True)
class Setting:
    """All of a rule but its transition.

    Attributes:
        before: scale above the transition.
        after: scale at and below it; None = the probe's.
        refine: how many times finer the grid is at and below it; its price is in `Candidate.evals_per_sample`.
        anchor: the unconditional prediction comes from the base model.
    """

    before: float = 0.0
    after: float | None = None
    refine: int = 1
    anchor: bool = False

    def __post_init__(self) -> None:
        if self.refine < 1:
            raise ValueError(f"Setting(refine={self.refine}): expected 1 (the sampler's own grid) or more")

    @property
    def stock(self) -> bool:
        """Whether an unmodified pipeline can apply it."""
        return self.refine == 1 and not self.anchor

    def __str__(self) -> str:
        after = "" if self.after is None else f", after {self.after:g}"
        finer = f", {self.refine} times finer" if self.refine > 1 else ""
        return f"before {self.before:g}{after}{finer}{', anchored' if self.anchor else ''}"


@dataclass(frozen=True)
class Scores:
    """A score of every pair, [N], and the pair's prompt, [N]: two rules on the same pairs are compared pair by pair."""

    values: Tensor
    prompt: Tensor

    def estimate(self) -> Estimate:
        """The mean, prompts as clusters."""
        return stats.cluster_bootstrap(self.values, self.prompt)

    def above(self, other: Scores) -> Estimate:
        """Mean difference to another rule's scores on the same pairs."""
        return stats.cluster_bootstrap(self.values - other.values, self.prompt)


@dataclass(frozen=True)
class Candidate:
    """One rule that was tried.

    Attributes:
        transition: timestep at and below which CFG is on.
        sigma: noise level there.
        setting: the rest of the rule.
        risk: share of pairs that reproduce a training image.
        p_value: of "the risk is above alpha".
        alignment: agreement of image and caption; None where it was not measured.
        evals_per_sample: network evaluations one sample takes.
        kept: whether the promise covers it.
        pilot: measured on pilot pairs only, to decide what to test; never covered by a promise.
        quality: distance of the samples to good images, lower is better; None where it was not measured.
        aligned: the alignment of every pair; not written to files.
    """

    transition: float
    sigma: float
    setting: Setting
    risk: Estimate
    p_value: float
    alignment: Estimate | None
    evals_per_sample: float
    kept: bool
    pilot: bool = False
    quality: Estimate | None = None
    aligned: Scores | None = field(default=None, repr=False, compare=False)

    @property
    def before(self) -> float:
        """Scale above the transition."""
        return self.setting.before

    @property
    def after(self) -> float | None:
        """Scale at and below it; None = the probe's."""
        return self.setting.after
