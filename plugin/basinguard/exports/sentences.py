"""What a record says, in phrases that the card, the terminal and a LoRA's header share."""

from __future__ import annotations

from ..core.estimate import Estimate
from ..core.record import Record

UNKNOWN = "not measured"


def percent(estimate: Estimate | None) -> str:
    """`3.1 % [1.0, 8.2] (n = 64)`; "not measured" where nothing was."""
    return UNKNOWN if estimate is None else estimate.percent()


def strength_line(record: Record) -> str:
    """What plain CFG does at the calibrated strength; "" where there is none."""
    strength = record.strength
    if strength is None:
        return ""
    what = "of the LoRA" if strength.kind == "lora" else "of the way from the base model's weights to these"
    return f"at {strength.value:g} {what}, plain CFG copies {percent(strength.risk)}"


def triage_line(record: Record) -> str:
    """How well the first gap tells prompts apart; "" where that was not calibrated."""
    triage = record.triage
    if triage is None:
        return ""
    return (
        f"a first gap of at most {triage.threshold:.4g} at timestep {triage.timestep:g} means harmless; wrong for "
        f"{percent(triage.miss)} of the pulling pairs and {percent(triage.false_alarm)} of the harmless ones"
    )
