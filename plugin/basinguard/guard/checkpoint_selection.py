"""Which epoch to ship: one for people who sample with plain CFG, one for guarded sampling.

The choice is made as the run goes on, so that keeping one set of weights for each is enough: a newer epoch takes the
place of the kept one or is passed over for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..core.estimate import Estimate
from ..core.report import Report, measured
from ..core.schema import Schema

SamplingMode = Literal["plain", "guarded"]
NOT, MEASURED, PROVEN = 0, 1, 2  # how well an epoch keeps the allowed risk


class EpochChoice(Schema):
    """An epoch to ship.

    Attributes:
        how: "plain" for plain CFG, "guarded" for guidance that comes on at the report's transition.
        epoch, train_step: which weights.
        proven: whether the upper end of the risk's interval keeps the allowed risk, not only its value.
        risk: of that way of sampling; for "guarded" of training captions, from the report's curve.
        taught: of that epoch under plain CFG, on held-out prompts: 0 is the base model, 1 true images.
        alignment: likewise, on held-out captions where there are any.
        why: the reasons in words.
    """

    how: SamplingMode
    epoch: int
    train_step: int
    proven: bool
    risk: Estimate
    taught: Estimate | None = None
    alignment: Estimate | None
    why: str


def choose_checkpoint(
    history: Sequence[Report], alpha: float, how: SamplingMode, *, latest: bool = False
) -> EpochChoice | None:
    """The epoch to ship; None where no epoch keeps the allowed risk.

    Among epochs that keep it, by the upper end of the interval if any does so: the one that has learnt the most of
    what is taught, net of copies. Where that is not measured, of those whose alignment is not clearly below the best's
    so far (its interval reaches the best value), the latest. The base model is no candidate.

    Args:
        history: reports in their order; gaps are passed over.
        alpha: risk that is allowed, in (0, 1).
        how: way of sampling.
        latest: take the latest epoch that keeps the risk, whatever else was measured.
    """
    current: Report | None = None
    for report in measured(history):
        if report.epoch < 0 or _keeps(report, alpha, how) == NOT:
            continue
        if latest or replaces(report, current, history, alpha, how):
            current = report
    return None if current is None else _choice(current, alpha, how)


def replaces(
    report: Report, current: Report | None, history: Sequence[Report], alpha: float, how: SamplingMode
) -> bool:
    """Whether an epoch takes the place of the one that was current before it.

    Args:
        report: of the newer epoch.
        current: the choice so far, if any.
        history: both among others; what came after `report` does not matter.
        alpha, how: as in `choose_checkpoint`.
    """
    rank = _keeps(report, alpha, how)
    if rank == NOT or current is None:
        return rank != NOT
    before = _keeps(current, alpha, how)
    if rank != before:
        return rank > before
    taught, was_taught = report.heldout.taught, current.heldout.taught
    if taught is not None and was_taught is not None:
        return taught.value > was_taught.value
    rivals = [r for r in measured(history) if 0 <= r.epoch <= report.epoch and _keeps(r, alpha, how) == rank]
    best = max((a.value for a in map(alignment_of, rivals) if a is not None), default=float("-inf"))
    good, was_good = (_reaches(alignment_of(r), best) for r in (report, current))
    return good or not was_good


def guarded_risk(report: Report) -> Estimate | None:
    """Risk of the training captions when guidance comes on at the report's transition; None where none is left.

    The curve counts copies of a caption's own image; at the first timestep, which is plain CFG, all others count too.
    """
    basin, plain = report.basin, report.samples.risk
    if basin.transition is None:
        return None
    ruled = next((risk for timestep, risk in basin.curve if timestep == basin.transition), plain)
    first = bool(basin.curve) and basin.transition == basin.curve[-1][0]
    return plain if first and plain and ruled and plain.value > ruled.value else ruled


def alignment_of(report: Report) -> Estimate | None:
    """Agreement of held-out captions and their samples; of training captions where those were not sampled."""
    return report.heldout.alignment or report.samples.alignment


def _risk(report: Report, how: SamplingMode) -> Estimate | None:
    return report.samples.risk if how == "plain" else guarded_risk(report)


def _keeps(report: Report, alpha: float, how: SamplingMode) -> int:
    risk = _risk(report, how)
    if risk is None or risk.value > alpha:
        return NOT
    uncond = report.basin.risk_uncond
    if how == "guarded" and uncond is not None and uncond.value > alpha:
        return NOT  # what is unguided above the transition copies by itself
    return PROVEN if _unpooled(report, risk).high <= alpha else MEASURED


def _unpooled(report: Report, risk: Estimate) -> Estimate:
    """The same of one probe alone: an interval that rests on how risk moves proves nothing."""
    return (report.samples.own_risk or risk) if risk == report.samples.risk else risk


def _reaches(alignment: Estimate | None, best: float) -> bool:
    return alignment is None or alignment.high >= best


def _choice(report: Report, alpha: float, how: SamplingMode) -> EpochChoice:
    risk, proven = _risk(report, how), _keeps(report, alpha, how) == PROVEN
    assert risk is not None
    where = "" if how == "plain" else f" with guidance from timestep {report.basin.transition:g} on"
    reasons = [f"risk {risk}{where} {'proves' if proven else 'measures'} at most {alpha:g}"]
    if not proven:
        high = _unpooled(report, risk).high
        reasons.append(f"the interval reaches {high:.2f}: more captions or seeds would tell")
    alignment, taught = alignment_of(report), report.heldout.taught
    if taught is not None:
        reasons.append(f"taught {taught}")
    reasons.append(f"alignment {alignment}" if alignment else "alignment was not measured")
    if taught is None:
        reasons.append("taught was not measured, so the latest such epoch")
    return EpochChoice(
        how=how, epoch=report.epoch, train_step=report.train_step, proven=proven, risk=risk, taught=taught,
        alignment=alignment, why="; ".join(reasons),
    )  # fmt: skip
