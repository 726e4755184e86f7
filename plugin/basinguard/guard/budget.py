"""How much a probe may cost, and what was spent of it.

A budget is a share of training time ("5%") or a number of UNet evaluations; either holds for every single probe. A
share is taken of the time trained since the probe before: what a probe leaves is not saved, and what one costs too much
the next ones pay back. A larger, rarer probe is the user's to ask for (`every_n_epochs`), because its span is longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STAGES = ("gap", "samples", "exits", "critical_scales", "taught")  # of a probe, each with its own price
GUESSED_PRICE = 0.02  # seconds a row before anything was timed; replaced by the base model's probe
CAUTION = 0.8  # share of the allowance that is spent: a price moves by a fifth from one probe to the next


@dataclass(frozen=True)
class Budget:
    """What one probe may cost: a share of the time trained since the last one, or a number of evaluations."""

    share: float | None = None
    evals: int | None = None

    @classmethod
    def parse(cls, value: str | int | None) -> Budget | None:
        """Reads "5%", "0.5%", 2000 or "2000"; None is no limit.

        Raises:
            ValueError: anything else; says what is accepted.

        Example:
            >>> Budget.parse("5%"), Budget.parse(2000)
            (Budget(share=0.05, evals=None), Budget(share=None, evals=2000))
        """
        if value is None:
            return None
        text = str(value).strip()
        try:
            if text.endswith("%") and 0 < float(text[:-1]) <= 100:
                return cls(share=float(text[:-1]) / 100)
            if not text.endswith("%") and int(text) >= 1:
                return cls(evals=int(text))
        except ValueError:
            pass
        raise ValueError(
            f"budget={value!r}: expected a share of the training time such as '5%' or a number of UNet evaluations "
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
        """Seconds a row, as last measured."""
        return self.prices.get(stage, GUESSED_PRICE)

    def learn(self, took: Mapping[str, float], rows: Mapping[str, int]) -> None:
        """Remembers what a row of each stage cost.

        Every probe measures the gap, so what was not bought is taken to have become dearer or cheaper as the gap did: a
        price from a moment when the machine was busy must not keep a stage from ever being bought again.
        """
        measured = {stage: took[stage] / rows[stage] for stage in took if rows.get(stage) and took[stage] > 0}
        change = measured["gap"] / self.prices["gap"] if "gap" in measured and "gap" in self.prices else 1.0
        missed = {
            stage: self.prices[stage] * change for stage in STAGES if stage in self.prices and stage not in measured
        }
        self.prices |= missed | measured
