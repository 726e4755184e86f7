"""Whether it can be told which images a model was trained on, by each statistic: goes to record and card."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .attack_table import TargetName
from .estimate import Estimate
from .schema import Schema


class MembershipRow(Schema):
    """One statistic.

    Attributes:
        statistic: its name.
        auc: chance that a member scores above a held-out image.
        hits: members found at 1 % false positives; None where there are too few held-out images to tell.
        false: false positives at that threshold, with their interval.
        missing: why there is no headline, and how many held-out images it takes; "" where there is one.
    """

    statistic: Annotated[str, Field(max_length=100)]
    auc: Estimate
    hits: Estimate | None = None
    false: Estimate | None = None
    missing: Annotated[str, Field(max_length=300)] = ""


class MembershipTable(Schema):
    """Every statistic on the weights of one model.

    Attributes:
        target: which.
        members: training images.
        controls: held-out images.
        evaluations: of the UNet; of the base model's too, where it was asked.
        rows: by statistic.
    """

    target: TargetName
    members: Annotated[int, Field(ge=1)]
    controls: Annotated[int, Field(ge=1)]
    evaluations: Annotated[int, Field(ge=0)]
    rows: tuple[MembershipRow, ...]

    @property
    def missing(self) -> str:
        """Why there is no headline; "" where there is one."""
        return next((row.missing for row in self.rows if row.missing), "")
