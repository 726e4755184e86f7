"""Whether a measured risk lets a build pass: its upper bound against the risk that is allowed, as one line of JSON."""

from __future__ import annotations

import json

from .estimate import Estimate
from .stats import wilson

CLOSED = 3  # exit status of a command whose gate stayed shut; 1 says a check failed, 2 that the command was mistaken


class Gate:
    """A gate for machines.

    Args:
        verb: the command that measured.
        risk: what it measured; None where nothing could be.
        alpha: the risk that is allowed.
        what: whose risk it is, in a few words.
        passed: where something else than the upper bound decides.

    Example:
        >>> gate = Gate("verify", wilson(0, 96), 0.05, "guarded")
        >>> gate.passed, gate.line
        (True, '{"gate": "passed", "verb": "verify", "what": "guarded", "risk": 0.0, "upper": 0.0385, "alpha": 0.05, \
"level": 0.95, "n": 96}')
    """

    status = CLOSED

    def __init__(self, verb: str, risk: Estimate | None, alpha: float, what: str, passed: bool | None = None) -> None:
        self.verb, self.risk, self.alpha, self.what, self._passed = verb, risk, alpha, what, passed

    @property
    def passed(self) -> bool:
        """Whether the upper bound is at most alpha; what was not measured does not pass."""
        if self._passed is not None:
            return self._passed
        return self.risk is not None and self.risk.high <= self.alpha

    @property
    def line(self) -> str:
        """One line of JSON."""
        risk = self.risk
        numbers = {
            "risk": None if risk is None else round(risk.value, 4),
            "upper": None if risk is None else round(risk.high, 4),
            "alpha": self.alpha,
            "level": None if risk is None else risk.level,
            "n": 0 if risk is None else risk.n,
        }
        outcome = "passed" if self.passed else "closed"
        return json.dumps({"gate": outcome, "verb": self.verb, "what": self.what, **numbers})


def require_passable(samples: int, alpha: float) -> None:
    """Refuses a gate that no result could open: too few samples for an upper bound of alpha even without a copy.

    Raises:
        ValueError: says how many it takes.
    """
    if wilson(0, max(samples, 1)).high <= alpha:
        return
    needed = samples
    while wilson(0, needed).high > alpha:
        needed += 1
    raise ValueError(
        f"--gate with {samples} samples could never pass: without a single copy the upper bound is "
        f"{wilson(0, max(samples, 1)).high:.1%}, above alpha={alpha:g}; take at least {needed} samples (per_caption)"
    )
