"""A comparison of mitigations: points, skipped ones and costs, as one value that is written to JSON."""

from __future__ import annotations

from ..core.schema import Schema
from .costs import Cost
from .measure import Point
from .ranking import RivalWin
from .settings import ComparisonSettings


class Skipped(Schema):
    """A mitigation that could not run on this model, and why."""

    mitigation: str
    reason: str


class Comparison(Schema):
    """The whole table, one JSON object.

    Attributes:
        settings: of the run.
        points: every mitigation at every intensity.
        skipped: mitigations that do not apply, with the reason.
        costs: of each mitigation at its default intensity.
        prompts: the caption of each cluster.
        clusters: prompt of each pair.
        rival_wins: rival points that are safer than ours at no less alignment.
        versions, command, seconds, machine: of the run.
    """

    settings: ComparisonSettings
    points: tuple[Point, ...]
    skipped: tuple[Skipped, ...]
    costs: tuple[Cost, ...]
    prompts: tuple[str, ...]
    clusters: tuple[int, ...]
    rival_wins: tuple[RivalWin, ...]
    versions: dict[str, str]
    command: str
    seconds: float
    machine: str
