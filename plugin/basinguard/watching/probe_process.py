"""The process that measures, started when there is something to measure and gone afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from .checkpoints import Checkpoint
from .request import WatchRequest, checkpoints_to_json

COMMAND = [sys.executable, "-P", "-m", "basinguard.watching"]
REFUSED = 2  # exit status of a probe that cannot begin


class ProbeBrokeDown(ValueError):
    """A probe ended without a word of its own: killed, or by a fault; another try may go well."""


class ProbeProcess:
    """Measures checkpoints in a process that ends afterwards, and with it all that it loaded.

    It may be started before there is something to measure, so that it has read the base and the images by then.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self, request: WatchRequest) -> None:
        """Starts it, if it is not there, and says what will be measured with."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(COMMAND, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True)
            self._tell(request.to_json())

    def _tell(self, line: str) -> None:
        """Says a line; one that ended already says why on its own."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Ends one that was not asked for anything."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def measure(self, request: WatchRequest, pending: Sequence[Checkpoint], news: Callable[[], object]) -> None:
        """Has checkpoints measured.

        Args:
            request: what is measured, and with what.
            pending: checkpoints, in their order.
            news: called whenever there may be new events.

        Raises:
            ProbeBrokeDown: the process was killed, or ended by a fault.
            ValueError: nothing can be measured with what was given.
        """
        self.start(request)
        self._tell(checkpoints_to_json(pending))
        process, self._process = self._process, None
        assert process is not None
        assert process.stderr is not None
        last = ""
        with process:
            try:
                for line in process.stderr:
                    last = line.strip() or last
                    news()
            except BaseException:
                process.terminate()
                raise
        _require_success(process.returncode, last)


def _require_success(status: int, last: str) -> None:
    if status == REFUSED:
        raise ValueError(last)
    if status < 0:
        raise ProbeBrokeDown(f"the probe was ended by signal {-status}; is there enough memory?")
    if status:
        raise ProbeBrokeDown(f"the probe ended with status {status}: {last}")
