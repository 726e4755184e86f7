"""Waits for checkpoints, has each of them measured, says what came of it, and acts where it is asked to.

Light on purpose: it holds no framework, reads headers alone, and never locks or changes what is the trainer's.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .checkpoints import Checkpoint, scan
from .request import LOCK, PAGE, WatchRequest, display_name, events_of

MOST_TRIES = 3  # of a checkpoint whose probe breaks down
REFUSED = 2  # exit status of a probe that cannot begin
Event = dict[str, Any]
Say = Callable[[str], None]
Measure = Callable[[WatchRequest, Sequence[Checkpoint], Callable[[], None]], None]


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
        """Does it; what was done, in words."""
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
        idle_minutes: ends when nothing new came for so long; 0 waits for ever.
    """

    once: bool = False
    interval: float = 10.0
    idle_minutes: float = 0.0

    def __post_init__(self) -> None:
        if self.interval <= 0 or self.idle_minutes < 0:
            raise ValueError(
                f"interval={self.interval}, idle_minutes={self.idle_minutes}: expected more than 0, and 0 or more"
            )


@dataclass(frozen=True)
class WatchReaction:
    """What is told and done.

    Attributes:
        on_breach: "none", "exit" (status 1), "touch FILE" or "run COMMAND", once a checkpoint breaches the risk.
        json: whether every event is told as one line of JSON.
        calibrate: whether the checkpoint to ship is calibrated and exported once the watch ends.
    """

    on_breach: str = "none"
    json: bool = False
    calibrate: bool = False

    def __post_init__(self) -> None:
        BreachAction.parse(self.on_breach)

    @property
    def action(self) -> BreachAction:
        """What a breach brings about."""
        return BreachAction.parse(self.on_breach)


class Watcher:
    """One watch over one output folder.

    Args:
        request: what is measured, and with what.
        pace: when it looks and ends.
        reaction: what is told and done.
        say: takes every line that is told.
        measure: measures the base model, if that was not done, and checkpoints, writing down events; see
            `measure_elsewhere`.

    Attributes:
        breached: whether a checkpoint breached the allowed risk.
    """

    def __init__(
        self,
        request: WatchRequest,
        pace: WatchPace,
        reaction: WatchReaction,
        say: Say,
        measure: Measure | None = None,
    ) -> None:
        self.request, self.pace, self.reaction, self.say = request, pace, reaction, say
        self.measure = measure or measure_elsewhere
        self.breached = False
        self._sizes: dict[Path, tuple[int, int]] = {}  # at the last look, of what was not measured yet
        self._tries: Counter[str] = Counter()  # of each checkpoint's state
        self._told = 0  # events that were told

    def run(self) -> list[Event]:
        """Watches until it is to end; every event of the folder, earlier ones too.

        Raises:
            ValueError: somebody watches this folder already, or nothing can be measured with what was given.
            OSError: the folder cannot be written.
        """
        self.request.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.request.folder / LOCK, timeout=0):
                self._watch()
        except Timeout:
            raise ValueError(f"{self.request.output} is being watched already; end that watch first") from None
        return self.events()

    def events(self) -> list[Event]:
        """Everything that was written down so far."""
        return events_of(self.request.folder)

    def _watch(self) -> None:
        self._told, last_news = len(self.events()), time.monotonic()
        while not (self.breached and self.reaction.action.kind == "exit"):
            pending, partial = self._pending()
            if pending or not self._measured_base():
                self._measure(pending)
                last_news = time.monotonic()
            if self.pace.once:
                self._tell_partial(partial)
                return
            if self.pace.idle_minutes and time.monotonic() - last_news > 60 * self.pace.idle_minutes:
                return
            time.sleep(self.pace.interval)

    def _measure(self, pending: Sequence[Checkpoint]) -> None:
        """Has them measured; a probe that breaks down, by a full disk say, is tried a few times and ends no watch.

        Raises:
            ValueError: nothing was ever measured here, so what was given cannot be right.
        """
        self._tries.update(checkpoint.key for checkpoint in pending)
        try:
            self.measure(self.request, pending, self._tell_news)
        except ValueError as error:
            if not self._measured_base():
                raise
            names = ", ".join(display_name(checkpoint.path) for checkpoint in pending)
            self._tell({"event": "failed", "checkpoint": names, "problem": str(error)})
        self._tell_news()

    def _measured_base(self) -> bool:
        return any(event["event"] == "measured" for event in self.events())

    def _pending(self) -> tuple[list[Checkpoint], dict[Path, str]]:
        """Checkpoints that nothing is known of and that have stopped growing, and files that are not whole."""
        now = scan(self.request.output, self.request.folder)
        past = {event.get("key") for event in self.events()}
        new = [c for c in now.checkpoints if c.key not in past and self._tries[c.key] < MOST_TRIES]
        settled = [c for c in new if self.pace.once or self._sizes.get(c.path) == (c.size, c.modified)]
        self._sizes = {c.path: (c.size, c.modified) for c in new}
        return settled, dict(now.partial)

    def _tell_news(self) -> None:
        for event in self.events()[self._told :]:
            self._told += 1
            self._tell(event)
            if event.get("breach") and not self.breached:
                self.breached = True
                self._tell(
                    {"event": "breach", "checkpoint": event["checkpoint"], "problem": self.reaction.action.act()}
                )

    def _tell_partial(self, partial: dict[Path, str]) -> None:
        for path, reason in partial.items():
            self._tell({"event": "not whole", "checkpoint": display_name(path), "problem": reason})

    def _tell(self, event: Event) -> None:
        self.say(json.dumps(event) if self.reaction.json else told(event))


def measure_elsewhere(request: WatchRequest, pending: Sequence[Checkpoint], news: Callable[[], None]) -> None:
    """Has checkpoints measured by a process that ends afterwards, and with it all that it loaded.

    Args:
        request: what is measured, and with what.
        pending: checkpoints, in their order.
        news: called whenever there may be new events.

    Raises:
        ValueError: nothing can be measured with what was given, or the process was killed.
    """
    command, pipe = [sys.executable, "-P", "-m", "basinguard.watching.measuring"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(request.to_json(tuple(pending)))
        process.stdin.close()
        last = ""
        for line in process.stderr:
            last = line.strip() or last
            news()
    if process.returncode:
        news()
        ended = "" if process.returncode == REFUSED else f"the probe ended with status {process.returncode}: "
        raise ValueError(f"{ended}{last}")


def told(event: Event) -> str:
    """An event in a line for people."""
    name = event["checkpoint"]
    if event["event"] != "measured":
        return f"{name}: {event['event']}, {event['problem']}"
    parts = [f"{name}: {event['verdict']}"]
    parts += [f"{what} {_interval(event[what])}" for what in ("risk", "taught") if event[what]]
    ship = event["ship"]
    parts += [] if ship is None or ship < 0 else [f"to ship epoch {ship + 1}"]
    return ", ".join([*parts, f"{event['seconds']:.0f} s"])


def _interval(values: Sequence[float]) -> str:
    value, low, high, n = values
    return f"{value:.2f} [{low:.2f}, {high:.2f}] (n = {n:g})"


def page_of(request: WatchRequest) -> Path:
    """Where the page is."""
    return request.folder / PAGE


def checkpoint_to_ship(events: Sequence[Event]) -> Event:
    """The event of the checkpoint that the newest verdict would ship.

    Raises:
        ValueError: none keeps the allowed risk.
    """
    measured = [event for event in events if event["event"] == "measured"]
    epoch = measured[-1]["ship"] if measured else None
    chosen = [event for event in measured if epoch is not None and epoch >= 0 and event["epoch"] == epoch]
    if not chosen:
        raise ValueError("no checkpoint keeps the allowed risk under plain CFG, so none was calibrated; see the page")
    return chosen[-1]
