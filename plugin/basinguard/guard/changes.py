"""How a run has moved, in words: what the newest report says, beside the one before it and the base model."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.estimate import Estimate
from ..core.report import Report, last_search, measured
from ..core.text import epoch_name

SPOKEN = {
    "risk": "risk under plain CFG",
    "width": "basin width",
    "gap": "gap, training captions",
    "gap_heldout": "gap, held-out prompts",
    "similarity_p95": "similarity to the nearest training image, 95th percentile",
    "risk_uncond": "risk of the empty prompt",
    "alignment": "alignment",
}


def changes_table(history: Sequence[Report]) -> str:
    """A table in markdown: what was measured last, and how far it moved since the probe before and since the base.

    Args:
        history: reports in their order; gaps among them are passed over.

    Raises:
        ValueError: nothing has been measured.
    """
    reports = measured(history)
    if not reports:
        raise ValueError(f"{len(history)} reports and none that measured anything")
    base, last = reports[0], reports[-1]
    previous = reports[-2] if len(reports) > 1 else last
    lines = [
        f"**{_when(last)}**, {_transition(last, last_search(reports))}",
        "",
        f"| | now, 95% interval | since {_when(previous)} | since {_when(base)} |",
        "|---|---|---|---|",
    ]
    for name, spoken in SPOKEN.items():
        now = last.estimates.get(name)
        if now is not None:
            steps = [_step(now, earlier.estimates.get(name)) for earlier in (previous, base)]
            lines.append(f"| {spoken} | {now} | {' | '.join(steps)} |")
    bought = f"within the budget: {last.precision}" if last.precision else ""
    return "\n".join([*lines, *(line for text in (bought, last.note) if text for line in ("", text))])


def _when(report: Report) -> str:
    return epoch_name(report.epoch)


def _transition(last: Report, stands: Report | None) -> str:
    if stands is None:
        return "exits were not looked for"
    when = "" if stands is last else f", as of {_when(stands)}"
    if stands.basin.transition is None:
        return f"no transition on the grid leaves a risk within the plan's{when}: delayed guidance comes too late"
    if stands.basin.transition >= 999:
        return f"guidance may be on from the start{when}"
    return f"guidance may come on at timestep {stands.basin.transition:g}{when}"


def _step(now: Estimate, earlier: Estimate | None) -> str:
    return "" if earlier is None else f"{now.value - earlier.value:+.3g}"
