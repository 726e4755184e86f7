"""When a watch looks and ends, what it tells, and what a breach brings about."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class BreachAction:
    """What is done when a checkpoint breaches the allowed risk.

    Attributes:
        kind: "none", "touch" (makes a file), "run" (a command, once) or "exit" (ends the watch, exit status 1).
        argument: the file or the command.
    """

    kind: str = "none"
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> BreachAction:
        """From "none", "exit", "touch FILE" or "run COMMAND".

        Raises:
            ValueError: anything else.

        Example:
            >>> BreachAction.parse("touch stop.txt")
            BreachAction(kind='touch', argument='stop.txt')
        """
        kind, _, argument = text.strip().partition(" ")
        if (kind in ("none", "exit") and not argument) or (kind in ("touch", "run") and argument):
            return cls(kind, argument)
        raise ValueError(f"on_breach={text!r}: expected none, exit, 'touch FILE' or 'run COMMAND'")

    def act(self) -> str:
        """Does it, if it can; what was done, or why not, in words."""
        try:
            return self._act()
        except (OSError, ValueError) as error:
            return f"{self.kind} {self.argument!r} failed: {error}"

    def _act(self) -> str:
        if self.kind == "touch":
            Path(self.argument).expanduser().touch()
        elif self.kind == "run":
            code = subprocess.run(shlex.split(self.argument), check=False).returncode
            return f"ran {self.argument!r}: exit status {code}"
        return {"none": "nothing was to be done", "exit": "the watch ends"}.get(self.kind, f"made {self.argument}")


@dataclass(frozen=True)
class WatchPace:
    """When a watch looks, and when it ends.

    Attributes:
        once: measures what is there, and ends.
        interval: seconds between two looks; a file counts as whole once it is the same at two of them.
        settle: seconds to the next look where there is a new file, if that is less.
        idle_minutes: ends when nothing new came for so long; 0 waits for ever.
    """

    once: bool = False
    interval: float = 2.0
    settle: float = 3.0
    idle_minutes: float = 0.0

    def __post_init__(self) -> None:
        if min(self.interval, self.settle) <= 0 or self.idle_minutes < 0:
            raise ValueError(
                f"interval={self.interval}, settle={self.settle}, idle_minutes={self.idle_minutes}: expected more than "
                "0, more than 0, and 0 or more"
            )


@dataclass(frozen=True)
class WatchReaction:
    """What is told and done.

    Attributes:
        on_breach: "none", "exit" (status 1), "touch FILE" or "run COMMAND", once a checkpoint breaches the risk.
        json: whether every event is told as one line of JSON.
        calibrate: "best" for the checkpoint to ship to be calibrated and exported once the watch ends.
    """

    on_breach: str = "none"
    json: bool = False
    calibrate: Literal["none", "best"] = "none"

    def __post_init__(self) -> None:
        BreachAction.parse(self.on_breach)

    @property
    def action(self) -> BreachAction:
        """What a breach brings about."""
        return BreachAction.parse(self.on_breach)
