"""What is to be promised, and the rules that may be chosen for it. Needs neither torch nor scipy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of a fine-tune, where they are tested at all


@dataclass(frozen=True)
class Setting:
    """A family of rules: all of a `core.record.Guidance` but the transition, which is what the search varies.

    Attributes:
        before: scale above the transition.
        after: scale at and below it; None = the probe's.
        refine: how many times finer the grid is at and below it; its price is in `RuleCandidate.evals_per_sample`.
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
class CalibrationTerms:
    """What is to be promised, and the rules that may be chosen.

    Attributes:
        alpha: risk that the export promises not to exceed, in (0, 1); what a probe goes by is `ProbePlan.alpha`.
        delta: chance that the promise is broken, in (0, 1).
        pairs: (caption, seed) pairs the promise rests on.
        before: scales above the transition to try.
        after: scales at and below it to try; the guard's own when empty.
        refine: how many times finer the grid below the transition may be; 1 is the sampler's own.
        anchor: whether to try the base model's unconditional prediction as well (LoRA only).
        transitions: timesteps to try, each taken as the next grid timestep below; every grid timestep when empty.
        finalists: settings that are tested for the promise; with more of them, pilot pairs choose.
        pilot_pairs: pairs that choose, besides those of the promise.
        strengths: of the fine-tune, to test with plain CFG, see `strength.strengths`; none when empty.
    """

    alpha: float = 0.05
    delta: float = 0.05
    pairs: int = 128
    before: tuple[float, ...] = (0.0, -1.0)
    transitions: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    refine: tuple[int, ...] = (1,)
    anchor: bool = False
    finalists: int = 2
    pilot_pairs: int = 64
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.before or not self.refine or self.finalists < 1:
            raise ValueError(
                f"CalibrationTerms(before={self.before}, refine={self.refine}, finalists={self.finalists}): "
                "nothing to test"
            )

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every combination of the knobs."""
        anchors = (False, True) if self.anchor else (False,)
        combined = product(anchors, self.before, self.refine, self.after or (None,))
        return tuple(Setting(before, after, refine, anchor) for anchor, before, refine, after in combined)

    @property
    def share(self) -> float:
        """The part of delta that each tested setting may spend."""
        return self.delta / min(self.finalists, len(self.settings))
