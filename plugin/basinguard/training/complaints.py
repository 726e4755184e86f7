"""Problems that must not end somebody's training: each is said once, or raised where that was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.text import one_line
from .guard_options import OnError


class Complaints:
    """What went wrong in a run, said once for each kind.

    Args:
        on_error: "warn" reports a problem once and goes on, "raise" stops.
        silent: says nothing, as all processes but the first.
    """

    def __init__(self, on_error: OnError, *, silent: bool) -> None:
        self.on_error, self.silent = on_error, silent
        self._reported: set[str] = set()

    def add(self, consequence: str, error: Exception) -> None:
        """Reports a problem, or raises it when so asked.

        Raises:
            Exception: `error`, with `on_error="raise"`.
        """
        if self.on_error == "raise":
            raise error
        if not self.silent and error_line(error) not in self._reported:
            self._reported.add(error_line(error))
            warnings.warn(f"{consequence}; training goes on: {error_line(error)}", stacklevel=2)

    @contextmanager
    def harmless(self, consequence: str) -> Iterator[None]:
        """Inside, an error is a complaint."""
        try:
            yield
        except Exception as error:
            self.add(consequence, error)


def error_line(error: Exception) -> str:
    """An error on one line, for people and for the history."""
    return one_line(f"{type(error).__name__}: {error}", 500)
