"""A run in one word: what the newest probe says about memorization, on what evidence, and how surely.

No model is needed and nothing is sampled: a verdict is read off the reports, in well under a millisecond each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from scipy import stats as scipy_stats

from ..core.estimate import Estimate
from ..core.report import Report, last_search, measured
from ..core.schema import Schema
from ..core.text import epoch_name

State = Literal["unknown", "has not learnt yet", "safe", "basin forming", "memorizing", "too late for delayed guidance"]
LEVELS: dict[State, int] = {
    "unknown": -1,
    "has not learnt yet": 0,
    "safe": 0,
    "basin forming": 1,
    "memorizing": 2,
    "too late for delayed guidance": 3,
}
Breach = Literal["plain", "guarded"]
SURE = 0.9  # confidence below which nothing is stopped
WATCHED = ("risk", "width", "gap", "similarity_p95")  # the model has not moved, for the guard, where none of them did


class Verdict(Schema):
    """What the newest probe says.

    Attributes:
        state: "safe"; "has not learnt yet" while its samples are surely further from what is taught than the base
            model's, as those of early updates are; "basin forming" while early alarms are up and plain CFG keeps the
            allowed risk; "memorizing" when it does not; "too late for delayed guidance" when no transition keeps it
            either; "unknown".
        epoch: of the probe that was judged; None where there was none.
        evidence: the numbers it rests on, in words; for "unknown", what is missing.
        confidence: that the state is right, in [0.5, 1], from the interval of the number that decided; None for
            "unknown".
    """

    state: State
    epoch: int | None = None
    evidence: tuple[Annotated[str, Field(max_length=600)], ...]
    confidence: Annotated[float, Field(ge=0.5, le=1)] | None = None

    @property
    def level(self) -> int:
        """0 safe to 3 too late; -1 unknown."""
        return LEVELS[self.state]

    def breaches(self, whose: Breach = "plain") -> bool:
        """Whether the risk of plain CFG, or of guarded sampling, is above the allowed one, surely enough to act."""
        return self.level >= (2 if whose == "plain" else 3) and (self.confidence or 0) >= SURE

    def __str__(self) -> str:
        sure = f" (confidence {self.confidence:.2f})" if self.confidence is not None else ""
        return f"{self.state}{sure}: {'; '.join(self.evidence)}"


def verdict_on(history: Sequence[Report], alpha: float) -> Verdict:
    """The verdict on the newest report.

    Args:
        history: reports in their order, gaps included; the base model's is epoch -1.
        alpha: risk that is allowed, in (0, 1).

    Raises:
        ValueError: `alpha` outside (0, 1).

    Example:
        >>> print(judge([], alpha=0.1))
        unknown: nothing has been measured
    """
    if not 0 < alpha < 1:
        raise ValueError(f"judge(alpha={alpha}): expected a share in (0, 1)")
    last = history[-1] if history else None
    missing = _missing(history, alpha)
    if missing or last is None:
        return Verdict(state="unknown", epoch=last.epoch if last else None, evidence=(missing,))
    if last.samples.risk is None:
        return _unsampled(history, alpha)
    risk, taught = last.samples.risk, last.heldout.taught
    summary = f"risk under plain CFG {_share(risk)} against {alpha:g} allowed"
    learnt = (f"taught {taught} (0 = base model, 1 = true images)",) if taught and last.epoch >= 0 else ()
    if risk.value > alpha:
        late = _too_late(last, alpha)
        state: State = "too late for delayed guidance" if late else "memorizing"
        evidence = (summary, *learnt, *(late or _still(history)))
        return Verdict(state=state, epoch=last.epoch, evidence=evidence, confidence=sureness(risk, alpha))
    alarms = early_alarms(last, measured(history)[0])
    if alarms:
        evidence, confidence = (summary, *learnt, *alarms), max(alarms.values())
        return Verdict(state="basin forming", epoch=last.epoch, evidence=evidence, confidence=confidence)
    if learnt and taught is not None and taught.high < 0:
        sure = sureness(taught, 0.0)
        return Verdict(state="has not learnt yet", epoch=last.epoch, evidence=(*learnt, summary), confidence=sure)
    return Verdict(state="safe", epoch=last.epoch, evidence=(summary, *learnt), confidence=sureness(risk, alpha))


def _unsampled(history: Sequence[Report], alpha: float) -> Verdict:
    """A probe that a budget paid no samples for: its alarms speak, unless the last samples said worse."""
    last, base = history[-1], measured(history)[0]
    sampled = max(k for k, report in enumerate(history) if report.samples.risk is not None)
    before, nothing = verdict_on(history[: sampled + 1], alpha), "no samples at this probe, so no risk"
    alarms = early_alarms(last, base)
    if alarms and before.level < LEVELS["memorizing"]:
        evidence = (*alarms, nothing)
        return Verdict(state="basin forming", epoch=last.epoch, evidence=evidence, confidence=max(alarms.values()))
    earlier = f"; at {epoch_name(before.epoch)} it was {before.state}" if history[sampled] is not base else ""
    return Verdict(state="unknown", epoch=last.epoch, evidence=(nothing + earlier,))


def _still(history: Sequence[Report]) -> tuple[str, ...]:
    """What the newest search for exits found, for one line of evidence."""
    searched = last_search(history)
    if searched is None or searched.basin.transition is None:
        return ("exits were not looked for: whether a transition still keeps it is not known",)
    now, epoch, transition = searched is history[-1], epoch_name(searched.epoch), searched.basin.transition
    if transition < max((timestep for timestep, _ in searched.basin.curve), default=transition + 1):
        return (f"guidance from timestep {transition:g} on still keeps it{'' if now else f', as of {epoch}'}",)
    if now:  # of its own caption none came back from the first timestep on
        return ("the copies are of images that have other captions: no transition is looked for against those",)
    return (f"exits were last looked for at {epoch}, when no transition was needed",)


def newest_known(history: Sequence[Report], alpha: float) -> Verdict | None:
    """The newest verdict that is not "unknown"; None if there never was one."""
    for end in range(len(history), 0, -1):
        verdict = verdict_on(history[:end], alpha)
        if verdict.level >= 0:
            return verdict
    return None


def sureness(estimate: Estimate, limit: float) -> float:
    """How surely an estimate lies on its side of a limit, in [0.5, 1]; normal on the side that faces it.

    Example:
        >>> round(sureness(Estimate(value=0.5, low=0.3, high=0.7, level=0.95, n=24, method=""), 0.3), 3)
        0.975
    """
    half = estimate.value - estimate.low if estimate.value > limit else estimate.high - estimate.value
    if half <= 0:
        return 1.0 if estimate.value != limit else 0.5
    z = float(scipy_stats.norm.ppf((1 + estimate.level) / 2))
    return float(scipy_stats.norm.cdf(abs(estimate.value - limit) / half * z))


def early_alarms(report: Report, base: Report) -> dict[str, float]:
    """What warns before the allowed risk is reached: words, and how surely each alarm is up."""
    alarms: dict[str, float] = {}
    rises = {
        "gap_excess": "the training captions' gap has risen {} more than held-out captions'",
        "sigma_c_excess": "the training images' log critical scale has risen {} more than held-out images'",
    }
    for name, words in rises.items():
        excess = report.estimates.get(name)
        if excess is not None and excess.low > 0:
            alarms[words.format(excess)] = sureness(excess, 0.0)
    width, width_before = report.basin.width, base.basin.width
    if width is not None and width_before is not None and width.low > width_before.high:
        alarms[f"basin width {width}"] = sureness(width, width_before.high)
    risk, risk_before = report.samples.own_risk, base.samples.risk
    if risk is not None and risk_before is not None and risk.value > risk_before.value:
        alarms[f"samples already copy: {_share(risk)}"] = sureness(risk, risk_before.value)
    return alarms


def _missing(history: Sequence[Report], alpha: float) -> str:
    """Why nothing can be said, or ""."""
    if not history:
        return "nothing has been measured"
    last, reports = history[-1], measured(history)
    if last.problem:
        return f"the probe of {epoch_name(last.epoch)} failed: {last.problem[:400]}"
    base = reports[0]
    if base.epoch != -1 or base.samples.risk is None:
        why = next((report.problem for report in history if report.epoch == -1), "")
        return f"the base model was not measured{f' ({why[:400]})' if why else ''}; there is nothing to compare with"
    if base.samples.risk.low > alpha:
        return (
            f"the base model itself seems to copy ({_share(base.samples.risk)}): the metric's threshold is too low for "
            "these images, or the base was trained on them"
        )
    return _flat(reports)


def _flat(reports: Sequence[Report]) -> str:
    """Whether nothing at all has moved since the base model, to the last digit, over two probes or more."""
    base, later = reports[0], reports[1:]
    if len(later) < 2 or later[-1].train_step <= base.train_step:
        return ""
    if any(_value(report, name) != _value(base, name) for report in later for name in WATCHED):
        return ""
    return (
        f"no number has moved since the base model in {len(later)} probes: what is probed is not what is trained, or "
        "the learning rate is 0"
    )


def _value(report: Report, name: str) -> float | None:
    estimate = report.samples.own_risk if name == "risk" else report.estimates.get(name)
    return None if estimate is None else estimate.value


def _too_late(report: Report, alpha: float) -> tuple[str, ...]:
    """Why delayed guidance cannot help any more; empty where it can."""
    reasons = []
    if report.searched and report.basin.transition is None:
        reasons.append("no transition on the grid keeps the allowed risk")
    uncond = report.basin.risk_uncond
    if uncond is not None and uncond.value > alpha:
        reasons.append(f"the empty prompt itself reproduces training images: {_share(uncond)}")
    return tuple(reasons)


def _share(estimate: Estimate) -> str:
    return f"{estimate.interval(2)} of {estimate.n} samples"
