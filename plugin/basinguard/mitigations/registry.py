"""Every method by its name, in the order of the tables."""

from __future__ import annotations

from collections.abc import Sequence

from .anti_memorization_guidance import AMG
from .attention_attenuation import GUARD
from .base import Method
from .delayed_guidance import DTP, OG_DTP, OG_STP, STP
from .delayed_guidance_released import DTP_RELEASED, STP_RELEASED
from .guidance_interval import INTERVAL
from .guidance_schedules import SCHEDULES
from .initial_noise import BATCHWISE, PERSAMPLE
from .less_finetuning import EARLIER, INTERPOLATE
from .ours import ANCHORED, BASE_LED, OURS, STRENGTH, TRIAGE
from .plain_cfg import LOWER, NONE
from .prompt_optimization import WEN
from .prompt_perturbation import NOISE, TOKENS
from .summary_tokens import REN

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(NONE, LOWER, INTERVAL, SCHEDULES),
        *(TOKENS, NOISE, WEN, REN, AMG),
        *(STP, OG_STP, DTP, OG_DTP, STP_RELEASED, DTP_RELEASED),
        *(BATCHWISE, PERSAMPLE, GUARD, EARLIER, INTERPOLATE),
        *(OURS, STRENGTH, ANCHORED, BASE_LED, TRIAGE),
    )
}


def named(names: Sequence[str]) -> list[Method]:
    """The methods of these names, "none" always first; "all" stands for every one.

    Raises:
        ValueError: a name that is not known; the known ones are listed.

    Example:
        >>> [method.name for method in named(["stp"])]
        ['none', 'stp']
    """
    unknown = [name for name in names if name not in METHODS and name != "all"]
    if unknown or not names:
        raise ValueError(f"methods {list(names)}: {unknown} not known; known: all, {', '.join(METHODS)}")
    wanted = set(METHODS) if "all" in names else {"none", *names}
    return [method for name, method in METHODS.items() if name in wanted]
