"""A comparison of methods: points, skipped methods and costs, as one value that is written to JSON."""

from __future__ import annotations

from ..core.schema import Schema
from .costs import Cost
from .measure import Point
from .ranking import Beaten
from .setting import Settings


class Skipped(Schema):
    """A method that could not run on this model, and why."""

    method: str
    reason: str


class Comparison(Schema):
    """The whole table, one JSON object.

    Attributes:
        settings: of the run.
        points: every method at every strength.
        skipped: methods that do not apply, with the reason.
        costs: of each method at its default strength.
        prompts: the caption of each cluster.
        clusters: prompt of each pair.
        beaten: rival points that are safer than ours at no less alignment.
        versions, command, seconds, machine: of the run.
    """

    settings: Settings
    points: tuple[Point, ...]
    skipped: tuple[Skipped, ...]
    costs: tuple[Cost, ...]
    prompts: tuple[str, ...]
    clusters: tuple[int, ...]
    beaten: tuple[Beaten, ...]
    versions: dict[str, str]
    command: str
    seconds: float
    machine: str
