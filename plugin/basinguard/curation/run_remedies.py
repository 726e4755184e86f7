"""What a training run calls for: memorization that was measured afterwards, turned into actions.

The gentlest action that has not been used up is proposed first; a person decides, as with everything here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from ..core.estimate import Estimate
from ..core.schema import Schema
from .captions import general_caption, word_counts
from .decisions import CurationAction, Decision
from .findings import Finding, risk_index

ACTIONS: dict[str, CurationAction] = {"drop": "drop", "fewer-repeats": "down-weight", "more-captions": "recaption"}


class Remedy(Schema):
    """What the evidence of a training run supports for one image, most memorized first.

    Attributes:
        file_name: the image.
        risk: share of samples that reproduced it, as the guard measured it.
        verdict: "memorized" (even the low end is above what is allowed), "clear" (even the high end is below) or
            "undecided" (the interval holds both).
        action: what to do; "keep" unless memorized.
        reason: why, in words, with the numbers.
    """

    file_name: str
    risk: Estimate
    verdict: Literal["memorized", "clear", "undecided"]
    action: Literal["keep", "fewer-repeats", "more-captions", "drop"]
    reason: str


def propose_from_run(
    risks: Mapping[str, Estimate],
    *,
    repeats: Mapping[str, int] | None = None,
    captions: Mapping[str, int] | None = None,
    alpha: float = 0.05,
    hopeless: float = 0.5,
) -> list[Remedy]:
    """Turns per-image memorization, measured after training, into actions.

    The gentlest action that has not been used up is proposed: show the image less often; else give it more captions;
    else, or when even the low end of its risk is above `hopeless`, leave it out.

    Args:
        risks: for each image file the share of samples that reproduced it, with its interval.
        repeats: how often an epoch showed it; 1 where nothing is said.
        captions: how many captions it had; 1 where nothing is said.
        alpha: the risk that is allowed, in (0, 1).
        hopeless: risk from which gentler actions are not tried, in (0, 1).

    Returns:
        One remedy for each image, by the low end of its risk, highest first.

    Example:
        >>> risk = Estimate(value=0.6, low=0.2, high=0.9, level=0.95, n=8, method="wilson")
        >>> propose_from_run({"a.png": risk}, repeats={"a.png": 10})[0].action
        'fewer-repeats'
    """
    if not 0 < alpha <= hopeless < 1:
        raise ValueError(f"alpha={alpha}, hopeless={hopeless}: expected 0 < alpha <= hopeless < 1")
    ranked = sorted(risks, key=lambda name: (-risks[name].low, -risks[name].value, name))
    times_shown, caption_counts = repeats or {}, captions or {}
    return [
        _remedy(name, risks[name], times_shown.get(name, 1), caption_counts.get(name, 1), alpha, hopeless)
        for name in ranked
    ]


def _remedy(name: str, risk: Estimate, repeats: int, captions: int, alpha: float, hopeless: float) -> Remedy:
    evidence = f"reproduced by {risk.percent(0)} of its samples"
    if risk.low <= alpha:
        clear = risk.high < alpha
        why = f"{evidence}: " + (
            "below what is allowed" if clear else f"not enough samples to say if above {alpha:.0%}"
        )
        verdict: Literal["clear", "undecided"] = "clear" if clear else "undecided"
        return Remedy(file_name=name, risk=risk, verdict=verdict, action="keep", reason=why)
    if risk.low >= hopeless:
        action, why = "drop", f"{evidence}: even the low end is above {hopeless:.0%}"
    elif repeats > 1:
        action, why = "fewer-repeats", f"{evidence}, shown {repeats} times an epoch: try {max(1, repeats // 2)}"
    elif captions <= 1:
        action, why = "more-captions", f"{evidence}, shown once with one caption: write more captions for it"
    else:
        action, why = "drop", f"{evidence}, although shown once and with {captions} captions"
    return Remedy.model_validate(
        {"file_name": name, "risk": risk, "verdict": "memorized", "action": action, "reason": why}
    )


def follow(decisions: Sequence[Decision], risks: Mapping[str, Estimate]) -> tuple[list[Decision], list[Remedy]]:
    """Decisions that also answer what a run memorized, and its remedies, most memorized first.

    What is proposed anyway stands where it is the stronger: a copy is left out, and a picture whose copies go is shown
    less often by that alone.

    Args:
        decisions: of `decisions.propose_decisions`, before the run was known.
        risks: share of samples that reproduced each image, by file name.
    """
    copies = Counter(decision.group for decision in decisions if decision.group is not None)
    times_shown = {d.file_name: max(1, d.repeats) * (copies[d.group] if d.group is not None else 1) for d in decisions}
    caption_counts = {d.file_name: len(d.captions) for d in decisions}
    risks_here = {name: risk for name, risk in risks.items() if name in times_shown}
    remedies = propose_from_run(risks_here, repeats=times_shown, captions=caption_counts)
    by_name = {remedy.file_name: remedy for remedy in remedies if remedy.verdict == "memorized"}
    occurrences = word_counts([decision.captions for decision in decisions])
    followed = [_follow(d, by_name[d.file_name], occurrences) if d.file_name in by_name else d for d in decisions]
    return followed, remedies


def _follow(decision: Decision, remedy: Remedy, occurrences: Counter[str]) -> Decision:
    weight = round(min(0.95, remedy.risk.value), 4)
    findings = (*decision.findings, Finding(code="memorized", message=remedy.reason, weight=weight))
    changed: dict[str, object] = {"findings": findings, "risk": risk_index(findings)}
    action = ACTIONS[remedy.action]
    if decision.action != "drop" and not (decision.group is not None and action != "drop"):
        changed |= _act(decision, action, remedy.reason, occurrences)
    return decision.model_copy(update=changed)


def _act(decision: Decision, action: CurationAction, reason: str, occurrences: Counter[str]) -> dict[str, object]:
    """What changes when this action is taken; nothing when it was refused before."""
    if action in decision.allowed:
        return {}
    changed: dict[str, object] = {"action": action, "reason": f"a training run memorized it: {reason}"}
    if action == "drop":
        return changed | {"repeats": 0}
    if action == "down-weight":
        return changed | {"repeats": max(1, decision.repeats // 2)}
    return changed | {"suggestion": general_caption(decision.captions[0], occurrences) if decision.captions else ""}
