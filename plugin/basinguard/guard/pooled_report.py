"""Within a budget: the risk of a few samples, pooled with what earlier probes drew."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.pooled_risk import pooled_risk
from ..core.report import Report


def pooled_report(report: Report, history: Sequence[Report]) -> Report:
    """The report with its risk pooled over the history; what its own samples said stays beside it.

    Args:
        report: of a probe that a budget paid; without samples it stays as it is.
        history: earlier reports in their order, the base model's first.
    """
    own = report.samples.risk
    if own is None:
        return report
    risk = pooled_risk([_count(earlier) for earlier in (*history, report) if earlier.samples.risk is not None])
    samples = report.samples.model_copy(update={"risk": risk, "risk_alone": own})
    words = f"risk within {(risk.high - risk.low) / 2:.2f} with the samples of earlier probes"
    precision = f"{report.precision}; {words}" if report.precision else words
    return report.model_copy(update={"samples": samples, "precision": precision})


def _count(report: Report) -> tuple[float, float]:
    """Copies and samples of one probe alone; several samples of one caption count as one, as if they were equal."""
    own = report.samples.own_risk
    assert own is not None
    samples = min(own.n, len(report.probed) or own.n)
    return own.value * samples, samples
