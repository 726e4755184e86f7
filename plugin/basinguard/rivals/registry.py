"""Every method by its name, in the order of the tables."""

from __future__ import annotations

from collections.abc import Sequence

from .amg import AMG
from .han import BATCHWISE, PERSAMPLE
from .interval import INTERVAL
from .jain import DTP, OG_DTP, OG_STP, STP
from .method import Method
from .ours import ANCHORED, BASE_LED, OURS, STRENGTH, TRIAGE
from .plain import LOWER, NONE
from .released import DTP_RELEASED, STP_RELEASED
from .ren import REN
from .scheduled import SCHEDULES
from .somepalli import NOISE, TOKENS
from .weights import EARLIER, INTERPOLATE
from .wen import WEN
from .zhao import GUARD

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
