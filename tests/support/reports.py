"""Reports made up for verdicts, forecasts and choices: only what they read."""

from basinguard.core.estimate import Estimate
from basinguard.core.report import Report
from basinguard.core.report_parts import ImageResult
from basinguard.core.stats import wilson


def near(value, half=0.02, n=24):
    return Estimate(value=value, low=value - half, high=value + half, level=0.95, n=n, method="made up")


def changed(report, **values):
    """A report with other values, by their names in its JSON."""
    return Report.model_validate({**report.model_dump(), **values})


def report(epoch, hits=0, *, n=24, per_epoch=8, transition=999.0, gap=0.1, gap_excess=None, **changes):
    """A report of `hits` copies among n samples; the gap moves with the epoch unless it is given."""
    step = (epoch + 1) * per_epoch
    fields = {
        "risk": wilson(hits, n),
        "risk_uncond": wilson(0, 8),
        "width": near(hits / n / 4, 0.0),
        "gap": near(gap + 0.001 * (epoch + 1)),
        "similarity_p95": near(0.5 + 0.001 * (epoch + 1)),
        "transition": transition,
        "curve": ((500.0, near(hits // 4 / n, 0.28)), (999.0, near(hits / n, 0.28))),  # as wide as a DKW band
        "gap_excess": gap_excess,
        "images": (ImageResult(index=0, width=hits / n), ImageResult(index=3, width=0.0)),
    }
    return changed(Report.missed(epoch, step, ""), **{**fields, **changes})


def base(**changes):
    return report(-1, **{"gap_excess": near(0.0, 0.0), **changes})
