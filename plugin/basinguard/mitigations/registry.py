"""Every mitigation by its name, in the order of the tables: a new one is added here."""

from __future__ import annotations

from collections.abc import Sequence

from .anti_memorization_guidance import AMG
from .attention_attenuation import GUARD_ZHAO
from .base import Mitigation
from .delayed_guidance import DTP, OG_DTP, OG_STP, STP
from .delayed_guidance_released import DTP_RELEASED, STP_RELEASED
from .guidance_interval import INTERVAL
from .guidance_schedules import SCHEDULES
from .initial_noise import BATCHWISE, PERSAMPLE
from .less_finetuning import EARLIER, INTERPOLATE
from .ours import ANCHORED, BASE_LED, OURS, STRENGTH, TRIAGE
from .plain_cfg import LOWER, PLAIN
from .prompt_optimization import WEN
from .prompt_perturbation import NOISE, TOKENS
from .summary_tokens import REN
from .update_edits import FILTERED, SCHEDULED

MITIGATIONS: dict[str, Mitigation] = {
    mitigation.name: mitigation
    for mitigation in (
        *(PLAIN, LOWER, INTERVAL, SCHEDULES),
        *(TOKENS, NOISE, WEN, REN, AMG),
        *(STP, OG_STP, DTP, OG_DTP, STP_RELEASED, DTP_RELEASED),
        *(BATCHWISE, PERSAMPLE, GUARD_ZHAO, EARLIER, INTERPOLATE),
        *(OURS, STRENGTH, ANCHORED, BASE_LED, TRIAGE, FILTERED, SCHEDULED),
    )
}


def by_name(names: Sequence[str]) -> list[Mitigation]:
    """The mitigations of these names, plain CFG always first; "all" stands for every one.

    Raises:
        ValueError: a name that is not known; the known ones are listed.

    Example:
        >>> [mitigation.name for mitigation in by_name(["stp"])]
        ['plain', 'stp']
    """
    unknown = [name for name in names if name not in MITIGATIONS and name != "all"]
    if unknown or not names:
        raise ValueError(f"mitigations {list(names)}: {unknown} not known; known: all, {', '.join(MITIGATIONS)}")
    selected = set(MITIGATIONS) if "all" in names else {PLAIN.name, *names}
    return [mitigation for name, mitigation in MITIGATIONS.items() if name in selected]
