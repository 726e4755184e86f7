"""What a guidance-distilled model can be calibrated for: it is sampled with the prompt alone, and takes no rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..calibration.terms import CalibrationTerms
from ..core.progress import say
from ..diffusion.sampling_options import SamplingOptions
from ..guard.plan import ProbePlan
from ..pipelines.families.registry import family_of, why_no_rule

ALONE = 1.0  # the scale that is the conditional branch alone
ASKED_BY = ("before", "after", "transitions", "anchor", "scales")  # of the terms: what only guidance can give


@dataclass(frozen=True, kw_only=True)
class PromptAlone(ProbePlan):
    """A plan for a guidance-distilled model: plain CFG is its conditional branch alone, whatever scale is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", ALONE)


def fitting_plan(pipe: Any, sampling: SamplingOptions) -> ProbePlan:
    """How a model is sampled: as asked for, but with the prompt alone where its guidance is distilled."""
    distilled = family_of(pipe).distilled(pipe)
    if distilled:
        say(f"{why_no_rule(pipe)}; sampled with the prompt alone, scale {ALONE:g}")
    kind = PromptAlone if distilled else ProbePlan
    return kind(captions=1, timesteps=sampling.timesteps, scale=sampling.scale)


def fitting_terms(pipe: Any, terms: CalibrationTerms) -> CalibrationTerms:
    """The terms without rules where a model can have none.

    Raises:
        ValueError: a rule or a guidance scale was asked for of a model that has no guidance.
    """
    if not family_of(pipe).distilled(pipe):
        return terms
    usual = CalibrationTerms()
    asked = [name for name in ASKED_BY if getattr(terms, name) not in (getattr(usual, name), (), (ALONE,))]
    if asked:
        raise ValueError(f"{why_no_rule(pipe)}; leave out {', '.join(asked)}")
    return replace(terms, before=(), scales=(ALONE,))
