"""How often the network was evaluated: counted once, where rows enter it, for whatever is measured behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..core.progress import advance
from .sampling import Denoiser


class EvaluationCount:
    """Rows that were put through the network, by the stage that asked for them.

    Attributes:
        rows: by stage; "" holds what was evaluated outside of every stage.

    Example:
        >>> count = EvaluationCount()
        >>> with count.stage("gap"):
        ...     count.add(3)
        >>> count.rows, count.total
        ({'gap': 3}, 3)
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._stage = ""

    @property
    def total(self) -> int:
        """Rows of all stages."""
        return sum(self.rows.values())

    def add(self, rows: int) -> None:
        """Counts rows for the present stage, and for whoever waits."""
        advance(rows)
        self.rows[self._stage] = self.rows.get(self._stage, 0) + rows

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Inside, rows count for `name`."""
        outer, self._stage = self._stage, name
        try:
            yield
        finally:
            self._stage = outer


def counted(denoise: Denoiser, count: EvaluationCount) -> Denoiser:
    """The same denoiser, with every row counted."""

    def evaluate(x: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        count.add(len(x))
        return denoise(x, timestep, prompt)

    return evaluate
