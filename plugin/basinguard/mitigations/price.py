"""What a comparison would take: each mitigation is sampled once, and that is multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import Mitigation, needs_base, no_preparation
from .costs import timed
from .held_out import SAMPLES
from .pairs import compared_batch
from .plain_cfg import PLAIN
from .runner import intensities
from .settings import ComparisonOptions
from .testbed import Testbed


@dataclass(frozen=True)
class ComparisonPrice:
    """What a comparison would take.

    Attributes:
        points: rows of its table.
        samples: pictures of each, at most.
        evaluations: of the networks, at most; without what mitigations prepare.
        seconds: of one evaluation on this machine.
        prepared: mitigations that prepare something first, which is not in the price; a sample of theirs is taken for
            one of plain CFG.
    """

    points: int
    samples: int
    evaluations: int
    seconds: float
    prepared: tuple[str, ...]

    def __str__(self) -> str:
        rows = (
            f"{self.points} points of at most {self.samples} pictures: {self.evaluations:,} evaluations of the network"
        )
        return rows + (f", without what {', '.join(self.prepared)} prepare first" if self.prepared else "")


def comparison_price(
    testbed: Testbed, mitigations: Sequence[Mitigation], options: ComparisonOptions
) -> ComparisonPrice:
    """The price of a comparison; plain CFG and what prepares nothing are sampled on one pair each."""
    _, _, batch = compared_batch(testbed, options)
    samples = len(batch) + (0 if needs_base(testbed) else 2 * SAMPLES)
    running = [m for m in mitigations if not m.missing_requirement(testbed)]
    ready = {m.name: m for m in (PLAIN, *running) if m.prepare is no_preparation}
    timed(testbed, PLAIN, batch[:1])  # to warm up
    taken = {name: timed(testbed, mitigation, batch[:1]) for name, mitigation in ready.items()}
    counts = {m.name: 1 if options.first_look else len(intensities(testbed, m)) for m in running}
    rows = sum(taken.get(name, taken[PLAIN.name])[1] * count for name, count in counts.items())
    return ComparisonPrice(
        points=sum(counts.values()),
        samples=samples,
        evaluations=rows * samples,
        seconds=sum(seconds for seconds, _ in taken.values()) / sum(count for _, count in taken.values()),
        prepared=tuple(name for name in counts if name not in ready),
    )
