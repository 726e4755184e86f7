"""A measured number with its interval, and the ways to print one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .schema import Finite, Schema
from .text import interval_text


class Estimate(Schema):
    """A number that says how sure it is.

    Attributes:
        value: the point estimate.
        low, high: ends of the interval.
        level: coverage of the interval, in (0, 1).
        n: how many independent observations it rests on.
        method: name of the interval or bound, as in `core.stats`.
    """

    value: Finite
    low: Finite
    high: Finite
    level: Annotated[float, Field(gt=0, lt=1)]
    n: Annotated[int, Field(ge=1)]
    method: Annotated[str, Field(max_length=200)]

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"

    def complement(self) -> Estimate:
        """Of what is left of a share: what was missed, where this is what was found."""
        return self.model_copy(update={"value": 1 - self.value, "low": 1 - self.high, "high": 1 - self.low})

    def interval(self, digits: int = 3) -> str:
        """With so many digits after the point, for a column of a table: `0.031 [0.010, 0.082]`."""
        return interval_text(self.value, self.low, self.high, digits)

    def percent(self, digits: int = 1) -> str:
        """A share for a sentence, with so many digits after the point: `3.1 % [1.0, 8.2] (n = 64)`."""
        value, low, high = (f"{100 * number:.{digits}f}" for number in (self.value, self.low, self.high))
        return f"{value} % [{low}, {high}] (n = {self.n})"
