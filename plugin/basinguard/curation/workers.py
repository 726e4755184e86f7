"""Files read by several processes: from any script, and past a file that stops the process which reads it."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from ..core.images import BadImage

CHUNK = 32
Read = Callable[[str], Any]


@contextmanager
def worker_pool(workers: int) -> Iterator[Callable[[Read, Sequence[str]], Iterable[Any]]]:
    """`map` over paths in this process, or over several with results in order; Ctrl-C abandons what has not started.

    A path whose reading ends its process gives a `BadImage` instead of a result; all others are read.
    """
    if workers == 1:
        yield map
        return
    executor = _executor(workers)
    try:
        yield lambda read, paths: _mapped(executor, read, paths)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _executor(workers: int) -> ProcessPoolExecutor:
    # spawned, not forked: a fork of a process whose OpenMP threads have run can hang
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _mapped(executor: ProcessPoolExecutor, read: Read, paths: Sequence[str]) -> Iterator[Any]:
    done = 0
    try:
        with _without_main():
            results = executor.map(read, paths, chunksize=CHUNK)
        for result in results:
            yield result
            done += 1
    except BrokenProcessPool:
        yield from _one_at_a_time(read, paths[done:])


def _one_at_a_time(read: Read, paths: Sequence[str]) -> Iterator[Any]:
    """Results of paths of which some end the process that reads them: a new process goes on after each."""
    while paths:
        done = 0
        with _executor(1) as executor:
            try:
                with _without_main():
                    results = executor.map(read, paths)
                for result in results:
                    yield result
                    done += 1
            except BrokenProcessPool:
                yield BadImage("ends-process", "reading it ends the process; save it again, or remove it")
                done += 1
        paths = paths[done:]


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes that start here do not run the script that the user started: it may have no main guard."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file
