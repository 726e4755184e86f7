"""Waits for checkpoints, has each of them measured, says what came of it, and acts where it is asked to.

Light on purpose: it holds no framework, reads headers alone, and never locks or changes what is the trainer's.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.text import interval_text
from .checkpoints import Checkpoint, scan
from .probe_process import ProbeBrokeDown, ProbeProcess
from .reaction import WatchPace, WatchReaction
from .request import BASE, LOCK, PAGE, WatchRequest, add_event, display_name, events_of

MOST_TRIES = 3  # of a checkpoint whose probe breaks down
PATIENCE = 60.0  # seconds after which a file that cannot be read and does not grow is told of
Event = dict[str, Any]
Say = Callable[[str], None]
Measure = Callable[[WatchRequest, Sequence[Checkpoint], Callable[[], object]], None]


class Watcher:
    """One watch over one output folder.

    Args:
        request: what is measured, and with what.
        pace: when it looks and ends.
        reaction: what is told and done.
        say: takes every line that is told.
        measure: measures the base model, if that was not done, and checkpoints, writing down events; a
            `ProbeProcess` by default.

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
        self._process = ProbeProcess()
        self.measure = measure or self._process.measure
        self._ahead = measure is None  # whether the process may start before it is asked
        self.breached = False
        self._sizes: dict[Path, tuple[int, int]] = {}  # at the last look, of what was not measured yet
        self._tries: Counter[str] = Counter()  # of each checkpoint's state, and of the base model
        self._partial: dict[tuple[Path, str], float] = {}  # when each was first seen so
        self._works = False  # whether a probe went well
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
                try:
                    self._watch()
                finally:
                    self._process.end()
        except Timeout:
            raise ValueError(f"{self.request.output} is being watched already; end that watch first") from None
        return self.events()

    def events(self) -> list[Event]:
        """Everything that was written down so far."""
        return events_of(self.request.folder)

    def _watch(self) -> None:
        self._told, last_news = len(self.events()), time.monotonic()
        self._answer_the_past()
        while not (self.breached and self.reaction.action.kind == "exit"):
            past = self.events()
            pending, partial = self._pending(past)
            if pending or not measured_base(past):
                self._measure(pending)
                last_news = time.monotonic()
                if self.pace.once:
                    continue  # what a probe that broke down left over
            self._tell_partial(partial)
            if self.pace.once:
                return
            if self.pace.idle_minutes and time.monotonic() - last_news > 60 * self.pace.idle_minutes:
                return
            time.sleep(self._until_next_look())

    def _until_next_look(self) -> float:
        """Seconds; fewer where a new file is to be seen at rest: the process that will measure it starts meanwhile."""
        if not self._sizes:
            self._process.end()
            return self.pace.interval
        if self._ahead:
            self._process.start(self.request)
        return min(self.pace.interval, self.pace.settle)

    def _measure(self, pending: Sequence[Checkpoint]) -> None:
        """Has them measured; a probe that breaks down, by a full disk say, is tried a few times and ends no watch.

        It is the first that nothing is known of yet that is held responsible; the others keep their turns.

        Raises:
            ValueError: it is refused from the beginning, so what was given cannot be right.
        """
        try:
            self.measure(self.request, pending, self._tell_news)
            problem, self._works = "", True
        except ValueError as error:
            if not (self._works or isinstance(error, ProbeBrokeDown)):
                raise
            problem = str(error)
        past = self._tell_news()
        keys = {event.get("key") for event in past}
        at_work = next((c for c in pending if c.key not in keys), None)
        key, name = ("", BASE) if at_work is None else (at_work.key, display_name(at_work.path))
        if not measured_base(past):
            key, name, problem = "", BASE, problem or "could not be measured"
        self._tries[key] += 1
        if problem and name == BASE and not measured_base(past) and self._tries[key] >= MOST_TRIES:
            raise ValueError(f"{name}: {problem}")
        if problem:
            self._tell({"event": "failed", "checkpoint": name, "problem": problem})

    def _pending(self, past: Sequence[Event]) -> tuple[list[Checkpoint], dict[Path, str]]:
        """Checkpoints that nothing is known of and that have stopped growing, and files that cannot be read."""
        now = scan(self.request.output, self.request.folder)
        keys = {event.get("key") for event in past}
        new = [c for c in now.checkpoints if c.key not in keys and self._tries[c.key] < MOST_TRIES]
        settled = [c for c in new if self.pace.once or self._sizes.get(c.path) == (c.size, c.modified)]
        self._sizes = {c.path: (c.size, c.modified) for c in new if c not in settled}
        return settled, dict(now.partial)

    def _tell_news(self) -> list[Event]:
        """Tells what was written down since the last time; everything that is by now."""
        past = self.events()
        for event in past[self._told :]:
            self._told += 1
            self._tell(event)
            if event.get("breach") and not self.breached:
                self._answer(event)
        return past

    def _answer(self, event: Event) -> None:
        self.breached = True
        add_event(
            self.request.folder,
            {"event": "breach", "checkpoint": event["checkpoint"], "problem": self.reaction.action.act()},
        )

    def _answer_the_past(self) -> None:
        """Answers a breach that was measured for a watch which ended before it could."""
        past = self.events()
        breaches = [event for event in past if event.get("breach")]
        if breaches and not any(event["event"] == "breach" for event in past):
            self._answer(breaches[-1])
            self._tell_news()

    def _tell_partial(self, partial: dict[Path, str]) -> None:
        """Tells once of each file that cannot be read: at once in a single look, else when it does not grow."""
        if not partial:
            self._partial.clear()
            return
        now, wait = time.monotonic(), 0 if self.pace.once else PATIENCE
        self._partial = {half: self._partial.get(half, now) for half in partial.items()}
        for (path, reason), since in self._partial.items():
            if since + wait <= now:
                self._partial[path, reason] = float("inf")
                self._tell({"event": "not read", "checkpoint": display_name(path), "problem": reason})

    def _tell(self, event: Event) -> None:
        self.say(json.dumps(event) if self.reaction.json else event_text(event))


def measured_base(past: Sequence[Event]) -> bool:
    """Whether the base model was measured, which is always the first."""
    return any(event["event"] == "measured" for event in past)


def event_text(event: Event) -> str:
    """An event in a line for people."""
    name = event["checkpoint"]
    if event["event"] not in ("measured", "early"):
        return f"{name}: {event['event']}, {event['problem']}"
    parts = [f"{name}: {event['verdict']}"]
    parts += [f"{what} {_interval(event[what])}" for what in ("risk", "taught") if event[what]]
    ship = event["ship"]
    parts += [] if ship is None or ship < 0 else [f"to ship epoch {ship + 1}"]
    end = "its basin is measured now" if event["event"] == "early" else f"{event['seconds']:.0f} s"
    return ", ".join([*parts, end])


def _interval(values: Sequence[float]) -> str:
    value, low, high, n = values
    return f"{interval_text(value, low, high, 2)} (n = {n:g})"


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
