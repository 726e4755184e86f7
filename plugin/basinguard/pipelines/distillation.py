"""What a guidance-distilled model is measured and calibrated for: it is sampled with the prompt alone, by no rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..calibration.terms import CalibrationTerms
from ..guard.plan import ProbePlan
from .families.registry import family_of, scale_of, why_no_rule

ALONE = 1.0  # the scale that is the conditional branch alone
ASKED_BY = ("before", "after", "transitions", "anchor", "scales")  # of the terms: what only guidance can give


@dataclass(frozen=True, kw_only=True)
class PromptAlone(ProbePlan):
    """A plan for a guidance-distilled model: plain CFG is its conditional branch alone, whatever scale is named."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", None)  # which would have to be a guidance scale
        super().__post_init__()
        object.__setattr__(self, "scale", ALONE)


def fitting_plan(pipe: Any, plan: ProbePlan) -> ProbePlan:
    """A plan with the guidance scale of a model's family where it names none; where guidance is distilled, none."""
    if family_of(pipe).distilled(pipe):
        return PromptAlone(**asdict(plan))
    return replace(plan, scale=scale_of(pipe, plan))


def distillation_note(pipe: Any) -> str:
    """One line on what can be done with a guidance-distilled model; "" for any other."""
    distilled = family_of(pipe).distilled(pipe)
    return f"{why_no_rule(pipe)}; sampled with the prompt alone, scale {ALONE:g}" if distilled else ""


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
