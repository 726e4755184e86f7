"""What is to be promised, and the products that may be chosen for it. Needs neither torch nor scipy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from ..core.update_filter import update_filter
from ..guidance.strength import StrengthSchedule

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 1.0)  # finer where most of what was taught is kept without its images
LOWER_SCALES = (2 / 3, 1 / 2)  # of the user's own guidance scale: where plain CFG is tried besides it
COARSE = 4  # transitions of a rule that are searched first where none are named
HALVINGS = 2  # rounds of transitions between those
LEAST_SCALE = 1.25  # nearer to 1 than this, guidance is none
CONTENDERS = 3  # of plain CFG, and of rules, that are ranked for what they keep, and as many from the safest on
RANKED = 2  # times the pairs of the search: those that what may ship is ranked on
EARLY = 0.5  # of the sequential design: share of delta for verdicts before the last round
FIRST = 0.8  # of the sequential design: share of a ladder's delta for the product that is tested first
Kind = Literal["sequential", "fixed"]
Counts = Literal["taught", "risk", "cost"]


@dataclass(frozen=True)
class Setting:
    """A family of rules: all of a `core.record.Guidance` but the transition, which is what the search varies.

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


@dataclass(frozen=True)
class CalibrationTerms:
    """What is to be promised, and the products (epoch, strength, rule or plain CFG, scale) that may be chosen.

    Attributes:
        alpha: risk that the export promises not to exceed, in (0, 1); what a probe goes by is `ProbePlan.alpha`.
        delta: chance that the promise is broken, in (0, 1).
        pairs: (caption, seed) pairs the promise rests on; of the sequential design, at most half as many again.
        design: "sequential" samples them in rounds over all captions and stops where the verdict is clear; "fixed"
            samples all of them for every product that is tested.
        epochs: how many probed epochs a run keeps on disk for the search, spread over the run; the newest always.
        strengths: of the fine-tune, in (0, 1]; others than 1 need the base model.
        scales: of plain CFG; the guard's own, two thirds and a half of it when empty.
        before: scales above the transition of a rule to try; no rules when empty.
        after: scales at and below it to try; the guard's own when empty.
        transitions: timesteps to try, each taken as the next grid timestep below; a few of the grid's when empty, and
            some between these.
        refine: how many times finer the grid below the transition may be; 1 is the sampler's own.
        anchor: whether to try the base model's unconditional prediction as well (LoRA only).
        strength_schedules: strengths by timestep of a LoRA to try besides, with plain CFG and with the best rule; none
            when empty. None has beaten the choice of the epoch or a rule yet (`recipes/results/weight_knobs.md`).
        update_filters: filters of the denoiser's change to try besides, by name, with plain CFG (`core.update_filter`);
            they need the base model; none when empty.
        search_pairs: pairs that each product of the grid is sampled on; what may ship is ranked on twice as many.
        taught_samples: samples of held-out prompts that tell what is kept by what ships, and by plain CFG beside it.
        counts: what decides between proven products: "taught", what keeps most; "risk", of those whose `taught`, on
            the samples of the proof, cannot be told from the highest the one that copied least; "cost", of them the
            one that takes the fewest network evaluations.
        chain: products that are tested in sequence, at most; there are up to two chains, plain CFG, and rules with
            strengths by timestep.
    """

    alpha: float = 0.05
    delta: float = 0.05
    pairs: int = 128
    design: Kind = "sequential"
    epochs: int = 6
    strengths: tuple[float, ...] = STRENGTHS
    scales: tuple[float, ...] = ()
    before: tuple[float, ...] = (0.0, -1.0)
    after: tuple[float, ...] = ()
    transitions: tuple[float, ...] = ()
    refine: tuple[int, ...] = (1,)
    anchor: bool = False
    strength_schedules: tuple[StrengthSchedule, ...] = ()
    update_filters: tuple[str, ...] = ()
    search_pairs: int = 16
    taught_samples: int = 32
    counts: Counts = "taught"
    chain: int = 6

    def __post_init__(self) -> None:
        least = min(self.epochs, self.chain, self.search_pairs, self.taught_samples)
        if not self.strengths or not self.refine or least < 1:
            raise ValueError(
                f"CalibrationTerms(strengths={self.strengths}, refine={self.refine}, epochs={self.epochs}, "
                f"chain={self.chain}, search_pairs={self.search_pairs}, taught_samples={self.taught_samples}): "
                "nothing to test; each needs at least 1"
            )
        if self.design not in get_args(Kind):
            raise ValueError(f"CalibrationTerms(design={self.design!r}): expected {' or '.join(get_args(Kind))}")
        if self.counts not in get_args(Counts):
            raise ValueError(f"CalibrationTerms(counts={self.counts!r}): expected {', '.join(get_args(Counts))}")
        if min(self.strengths) <= 0 or max(self.strengths) > 1:
            raise ValueError(
                f"CalibrationTerms(strengths={self.strengths}): expected shares in (0, 1]; 1 is the fine-tune"
            )
        for name in self.update_filters:
            update_filter(name)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every combination of a rule's knobs."""
        anchors = (False, True) if self.anchor else (False,)
        combined = product(anchors, self.before, self.refine, self.after or (None,))
        return tuple(Setting(before, after, refine, anchor) for anchor, before, refine, after in combined)

    def plain_scales(self, scale: float) -> tuple[float, ...]:
        """Guidance scales at which plain CFG is a candidate, the user's own first.

        Example:
            >>> CalibrationTerms().plain_scales(3.0), CalibrationTerms().plain_scales(7.5)
            ((3.0, 2.0, 1.5), (7.5, 5.0, 3.75))
        """
        lower = (round(scale * share, 2) for share in LOWER_SCALES)
        chosen = self.scales or tuple(s for s in lower if s >= LEAST_SCALE)
        return tuple(dict.fromkeys((scale, *chosen)))

    @property
    def chains(self) -> int:
        """How many chains share delta at most: plain CFG, and what a loader must apply."""
        return 2 if self.before or self.strength_schedules else 1

    @property
    def share(self) -> float:
        """The part of delta that a chain may spend at least, whatever the search finds."""
        return self.delta / self.chains
