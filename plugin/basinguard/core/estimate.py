"""TODO one line."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .schema import Finite, Schema


class Estimate(Schema):
    """A number that says how sure it is.

    Attributes:
        value: the point estimate.
        low, high: ends of the interval.
        level: coverage of the interval, in (0, 1).
        n: how many independent observations it rests on.
        method: name of the interval or bound, as in `basinguard.stats`.
    """

    value: Finite
    low: Finite
    high: Finite
    level: Annotated[float, Field(gt=0, lt=1)]
    n: Annotated[int, Field(ge=1)]
    method: Annotated[str, Field(max_length=200)]

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"
