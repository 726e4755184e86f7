"""How much a probe may cost, and what it can measure for that.

A budget is a share of training time ("5%") or a number of UNet evaluations for each probe. Time is kept like an
account: every epoch pays in its share, every probe is paid from it, and what is too little for a useful probe is saved.
So the share holds over the run, whatever a single probe costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .stats import wilson

LEAST_PAIRS = 2  # below this a probe says nothing about exits
GUESSED_RATE = 50.0  # evaluations a second before anything was timed; replaced by the first probe


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
    """Training time paid in, probe time paid out, and how fast evaluations were.

    Attributes:
        paid_in: seconds the probes may have taken so far.
        spent: seconds they took.
        rate: evaluations a second, everything a probe does included; None before the first probe.
    """

    paid_in: float = 0.0
    spent: float = 0.0
    rate: float | None = None

    def pay_in(self, share: float, seconds: float) -> None:
        """Adds the probes' share of `seconds` of training."""
        self.paid_in += share * max(0.0, seconds)

    def affordable(self) -> int:
        """Evaluations that the balance pays for."""
        return max(0, int((self.paid_in - self.spent) * (self.rate or GUESSED_RATE)))

    def pay_out(self, seconds: float, evals: int, charged: bool = True) -> None:
        """Books a probe; an uncharged one (the base model's) only teaches the rate."""
        self.spent += seconds if charged else 0.0
        if seconds > 0 and evals > 0:
            self.rate = evals / seconds


@dataclass(frozen=True)
class Purchase:
    """What a budget buys.

    Attributes:
        gaps: captions whose gap is measured.
        captions: captions that are sampled.
        seeds: samples of each.
        resolution: grid positions an exit may be left open by.
    """

    gaps: int
    captions: int
    seeds: int
    resolution: int

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
        """
        half = wilson(self.pairs // 2, self.pairs)
        return (
            f"gap of {self.gaps} of {total} captions; {self.pairs} samples of {self.captions} captions: risk within "
            f"{(half.high - half.low) / 2:.2f}, exits within {round(self.resolution * 1000 / timesteps)} timesteps"
        )


def buy(evals: int, *, captions: int, gap_captions: int, seeds: int, timesteps: int, heldout: int) -> Purchase | None:
    """The best measurement for `evals` evaluations; None when they cannot pay for two samples and their exits.

    The gap of every caption comes first, because it warns earliest and costs one evaluation each; the rest is spent on
    exits, more captions before more seeds, and on a finer search last.

    Args:
        evals: what may be spent.
        captions: most captions to sample.
        gap_captions: captions of the training set.
        seeds: most seeds for each.
        timesteps: of the sampler's grid.
        heldout: held-out prompts, whose gap is the control.
    """
    gaps = min(gap_captions, evals - heldout - 2)
    if gaps < 2:
        return None
    left = evals - gaps - heldout - 2
    for resolution in (1, 2, 4, 8):
        tries = math.log2(max(2.0, timesteps / resolution)) / 2 + 1  # a guess saves about half of the halvings
        fixed = timesteps * min(seeds, 2)  # unguided trajectories, one for each seed
        pairs = int((left - fixed) / (2 * timesteps * (1 + tries / 2)))
        if pairs >= min(LEAST_PAIRS * 2, captions) or (resolution == 8 and pairs >= LEAST_PAIRS):
            sampled = min(captions, pairs)
            return Purchase(gaps, sampled, max(1, min(seeds, pairs // sampled)), resolution)
    return None


def rotated(total: int, count: int, turn: int) -> list[int]:
    """`count` of `total` captions: the next ones at every turn, round and round, in one fixed mixed order.

    Example:
        >>> rotated(5, 2, 0), rotated(5, 2, 1), rotated(5, 2, 2)
        ([0, 3], [1, 4], [2, 0])
    """
    stride = next(s for s in range(int(total * 0.618), total + 2) if math.gcd(s, total) == 1) if total > 1 else 1
    order = [(stride * i) % total for i in range(total)]
    return [order[(turn * count + i) % total] for i in range(count)]
