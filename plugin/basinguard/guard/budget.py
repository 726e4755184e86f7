"""How much a probe may cost, and what it can measure for that.

A budget is a share of training time ("5%") or a number of UNet evaluations; either holds for every single probe. A
share is taken of the time trained since the probe before: what a probe leaves is not saved, and what one costs too much
the next ones pay back. A larger, rarer probe is the user's to ask for (`every_n_epochs`), because its span is longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..core.stats import wilson

STAGES = ("gap", "samples", "exits", "scales")  # of a probe, each with its own price
LEAST_PAIRS = 2  # below this samples say nothing
LEAST_SEARCHED = 4  # and below this exits
SCALE_EVALS = 320  # most evaluations that one critical scale takes: 10 halvings of 16, with the caption and without
GUESSED_PRICE = 0.02  # seconds a row before anything was timed; replaced by the base model's probe
CAUTION = 0.8  # share of the allowance that is spent: a price moves by a fifth from one probe to the next
EVALUATIONS: Mapping[str, float] = MappingProxyType(dict.fromkeys(STAGES, 1.0))  # prices where evaluations are counted


@dataclass(frozen=True)
class Budget:
    """What one probe may cost: a share of the time trained since the last one, or a number of evaluations."""

    share: float | None = None
    evals: int | None = None

    @classmethod
    def parse(cls, given: str | int | None) -> Budget | None:
        """Reads "5%", "0.5%", 2000 or "2000"; None is no limit.

        Raises:
            ValueError: anything else; says what is accepted.

        Example:
            >>> Budget.parse("5%"), Budget.parse(2000)
            (Budget(share=0.05, evals=None), Budget(share=None, evals=2000))
        """
        if given is None:
            return None
        text = str(given).strip()
        try:
            if text.endswith("%") and 0 < float(text[:-1]) <= 100:
                return cls(share=float(text[:-1]) / 100)
            if not text.endswith("%") and int(text) >= 1:
                return cls(evals=int(text))
        except ValueError:
            pass
        raise ValueError(
            f"budget={given!r}: expected a share of the training time such as '5%' or a number of UNet evaluations "
            "such as 2000"
        )


@dataclass
class Account:
    """Seconds that probes may take, and what things cost.

    Attributes:
        balance: seconds left of the present allowance; below 0, what earlier probes took too much.
        prices: by stage, seconds for each row that goes through the network, everything else included; by the name
            of a picture, seconds for one.
    """

    balance: float = 0.0
    prices: dict[str, float] = field(default_factory=dict)

    def copy(self) -> Account:
        """One that learns and pays on its own."""
        return Account(self.balance, dict(self.prices))

    def allow(self, seconds: float) -> None:
        """Opens a new allowance; debts carry over, savings do not."""
        self.balance = min(0.0, self.balance) + max(0.0, seconds)

    def spendable(self) -> float:
        """Seconds that may be planned with."""
        return CAUTION * max(0.0, self.balance)

    def price(self, stage: str) -> float:
        """Seconds a row, as last seen."""
        return self.prices.get(stage, GUESSED_PRICE)

    def learn(self, took: Mapping[str, float], rows: Mapping[str, int]) -> None:
        """Remembers what a row of each stage cost.

        Every probe measures the gap, so what was not bought is taken to have become dearer or cheaper as the gap did: a
        price from a moment when the machine was busy must not keep a stage from ever being bought again.
        """
        seen = {stage: took[stage] / rows[stage] for stage in took if rows.get(stage) and took[stage] > 0}
        change = seen["gap"] / self.prices["gap"] if "gap" in seen and "gap" in self.prices else 1.0
        missed = {stage: self.prices[stage] * change for stage in STAGES if stage in self.prices and stage not in seen}
        self.prices |= missed | seen


@dataclass(frozen=True)
class Menu:
    """What there is to buy, and how many rows of the network it takes.

    Attributes:
        captions: most captions to sample at one probe.
        gap_captions: captions of the training set.
        seeds: most samples of each caption.
        evaluations: of one row from noise to image.
        heldout: held-out prompts, whose gap is the control.
        pool: seeds that captions share: unguided trajectories, at most.
        scales: images whose critical scale is asked for.
        unit: rows come in multiples of this; 1 counts evaluations instead of time.
    """

    captions: int
    gap_captions: int
    seeds: int
    evaluations: int
    heldout: int = 0
    pool: int = 8
    scales: int = 0
    unit: int = 1

    def gap(self, captions: int, heldout: bool = True) -> int:
        """Rows for the gap of so many captions, and of the held-out prompts."""
        return self._full(captions + 1) + (self._full(self.heldout + 1) if heldout and self.heldout else 0)

    def samples(self, pairs: int) -> int:
        """Rows for ordinary CFG of so many pairs."""
        return self.evaluations * self._full(2 * pairs)

    def trunk(self, pairs: int) -> int:
        """Rows for the unguided trajectories, one for each seed."""
        return self.evaluations * self._full(min(self.pool, pairs))

    def exits(self, pairs: int, resolution: int) -> int:
        """Rows for the exits of sampled pairs, all of which may reproduce."""
        tries = math.log2(max(2.0, self.evaluations / resolution)) / 2 + 1  # a guess saves about half of the halvings
        return self.trunk(pairs) + math.ceil(self.samples(pairs) * tries / 2)

    def _full(self, rows: int) -> int:
        return -(-rows // self.unit) * self.unit


@dataclass(frozen=True)
class Purchase:
    """What a budget buys.

    Attributes:
        gaps: captions whose gap is measured.
        captions: captions that are sampled; 0 is none.
        seeds: samples of each.
        resolution: grid positions an exit may be left open by; 0 where exits are not looked for.
        scales: images whose critical scale is measured.
        heldout: whether the gap of held-out prompts is measured too.
        missing: how many times this budget the least search for exits takes; 0 where it was bought.
    """

    gaps: int
    captions: int = 0
    seeds: int = 0
    resolution: int = 0
    scales: int = 0
    heldout: bool = True
    missing: float = 0.0

    @property
    def pairs(self) -> int:
        """(caption, seed) pairs that are sampled."""
        return self.captions * self.seeds

    def precision(self, timesteps: int, total: int) -> str:
        """What that is good for, in words.

        Args:
            timesteps: of the sampler's grid.
            total: captions of the training set.

        Example:
            >>> Purchase(30, 8, 2, 2).precision(timesteps=20, total=30)
            'gap of 30 of 30 captions; 16 samples of 8 captions: risk within 0.22, exits within 100 timesteps'
            >>> Purchase(30, missing=2.5).precision(timesteps=20, total=30)
            'gap of 30 of 30 captions; no samples; exits take 2.5 times this budget: raise it, or probe less often'
        """
        parts = [f"gap of {self.gaps} of {total} captions" + ("" if self.heldout else ", of no held-out prompts")]
        if not self.pairs:
            parts.append("no samples")
        else:
            half = wilson(self.pairs // 2, self.pairs)
            exits = f", exits within {round(self.resolution * 1000 / timesteps)} timesteps" if self.resolution else ""
            parts.append(
                f"{self.pairs} samples of {self.captions} captions: risk within {(half.high - half.low) / 2:.2f}{exits}"
            )
        if self.scales:
            parts.append(f"critical scale of {self.scales} images")
        if self.missing:
            parts.append(f"exits take {self.missing:.2g} times this budget: raise it, or probe less often")
        return "; ".join(parts)


def buy(allowance: float, menu: Menu, prices: Mapping[str, float] = EVALUATIONS) -> Purchase | None:
    """The best measurement for an allowance; None when it cannot pay for the gap of two captions.

    The gap comes first, because it warns earliest and costs one evaluation a caption; held-out prompts, its control,
    are left out where nothing would remain for captions. Then samples with their exits, more captions before more
    seeds and a finer search last; where exits are too dear, samples alone, which tell the risk. What is left goes to
    critical scales, where the plan asks for them.

    Args:
        allowance: what may be spent, in seconds or evaluations.
        menu: what there is.
        prices: of a row of each stage, in the same currency.
    """
    least = min(2, menu.gap_captions)
    heldout = menu.gap(least) * prices["gap"] <= allowance
    gaps = _most(menu.gap_captions, lambda n: menu.gap(n, heldout) * prices["gap"], allowance)
    if gaps < least:
        return None
    left = allowance - menu.gap(gaps, heldout) * prices["gap"]
    most, searched = menu.captions * menu.seeds, min(LEAST_SEARCHED, menu.captions * menu.seeds)

    def with_exits(resolution: int) -> Callable[[int], float]:
        return lambda n: menu.samples(n) * prices["samples"] + menu.exits(n, resolution) * prices["exits"]

    pairs, resolution = 0, 0
    for resolution in (1, 2, 4, 8):
        pairs = _most(most, with_exits(resolution), left)
        if pairs >= searched:
            break
    spent, missing = with_exits(resolution)(pairs), 0.0
    if pairs < searched:
        alone = _most(most, lambda n: menu.samples(n) * prices["samples"], left)
        pairs, resolution = alone if alone >= min(LEAST_PAIRS, most) else 0, 0
        spent = menu.samples(pairs) * prices["samples"]
        missing = (menu.gap(gaps, heldout) * prices["gap"] + with_exits(8)(searched)) / allowance
    captions = min(menu.captions, pairs)
    scales = menu.scales if menu.scales * SCALE_EVALS * prices["scales"] <= left - spent else 0
    return Purchase(gaps, captions, pairs // captions if captions else 0, resolution, scales, heldout, missing)


def _most(count: int, cost: Callable[[int], float], allowance: float) -> int:
    """The largest number up to `count` whose cost is within the allowance; 0 when not even 1 is."""
    return next((n for n in range(count, 0, -1) if cost(n) <= allowance), 0)


def rotated(total: int, count: int, begin: int) -> list[int]:
    """`count` of `total` captions, from place `begin` on, round and round, in one fixed mixed order.

    Example:
        >>> rotated(5, 2, 0), rotated(5, 2, 2), rotated(5, 2, 4)
        ([0, 3], [1, 4], [2, 0])
    """
    stride = next(s for s in range(int(total * 0.618), total + 2) if math.gcd(s, total) == 1) if total > 1 else 1
    return [stride * (begin + i) % total for i in range(count)]
