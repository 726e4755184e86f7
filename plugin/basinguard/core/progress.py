"""What long work says while it works: lines of the logger "basinguard", at level INFO."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("basinguard")


def say(line: str) -> None:
    """One line about what is done and what is still to come."""
    LOG.info(line)


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
