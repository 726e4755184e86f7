"""What long work says while it works: lines of the logger "basinguard", and how far a stretch of it has come.

In a terminal a stretch is a bar with its stage, what is left and the last word; elsewhere a line every half minute.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LOG = logging.getLogger("basinguard")
EVERY = 30.0  # seconds between two lines


class Stage:
    """One stretch of long work.

    Args:
        name: what is done.
        most: evaluations that it takes at most; 0 where that is not known.
        word: what was said last, such as a verdict.
        clock: seconds.

    Example:
        >>> stage = Stage("probe of epoch 20", most=300, word="safe", clock=lambda: 0.0)
        >>> stage.done, stage.started = 100, -50.0
        >>> stage.line()
        'probe of epoch 20: 100 of at most 300 evaluations, at most 2 min left; last: safe'
    """

    def __init__(self, name: str, most: int = 0, word: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.most, self.word, self.clock = name, most, word, clock
        self.done, self.started = 0, clock()
        self._told = self.started
        self._bar = _bar(name, most, word)

    def advance(self, evaluations: int) -> None:
        """Counts; says a line where the last is half a minute old."""
        self.done += evaluations
        if self._bar is not None:
            self._bar.update(evaluations)
        elif self.clock() - self._told >= EVERY:
            self._told = self.clock()
            LOG.info(self.line())

    def line(self) -> str:
        """How far it is, in words."""
        left, spent = self.most - self.done, self.clock() - self.started
        of = f" of at most {self.most:,}" if left > 0 else ""
        until = f", at most {duration(left * spent / self.done)} left" if left > 0 and self.done else ""
        return f"{self.name}: {self.done:,}{of} evaluations{until}" + (f"; last: {self.word}" if self.word else "")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        LOG.info(line)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()


_stages: list[Stage] = []  # the innermost last


def say(line: str) -> None:
    """One line about what is done and what is still to come."""
    if _stages:
        _stages[-1].say(line)
    else:
        LOG.info(line)


def advance(evaluations: int) -> None:
    """So many evaluations of the network, or samples, have been done of the present stretch."""
    if _stages:
        _stages[-1].advance(evaluations)


@contextmanager
def working(name: str, most: int = 0, word: str = "") -> Iterator[None]:
    """Inside, `advance` is told; see `Stage`. A stretch within another counts for the outer one."""
    if _stages:
        yield
        return
    _stages.append(Stage(name, most, word))
    try:
        yield
    finally:
        _stages.pop().close()


def duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> duration(8), duration(100), duration(5400)
        ('8 s', '2 min', '1.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _bar(name: str, most: int, word: str) -> Any:
    """A bar in a terminal that nobody else draws in (rich's live display stands in for stderr); None elsewhere."""
    if not LOG.isEnabledFor(logging.INFO) or not sys.stderr.isatty() or hasattr(sys.stderr, "rich_proxied_file"):
        return None
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar:30}| at most {remaining} left{postfix}" if most else None
    bar = tqdm(total=most or None, desc=name, leave=False, bar_format=form, unit="eval")
    bar.set_postfix_str(word)
    return bar


@contextmanager
def shown() -> Iterator[None]:
    """Inside, the lines appear on stderr, unless the application listens already.

    A handler at the root says nothing: libraries put one there. A level of INFO or below does.
    """
    if LOG.isEnabledFor(logging.INFO):
        yield
        return
    handler, before = logging.StreamHandler(sys.stderr), (LOG.level, LOG.propagate)
    handler.setFormatter(logging.Formatter("basinguard: %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # libraries that are loaded on the way may listen at the root: each line once
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before[0])
        LOG.propagate = before[1]
