"""What a probe covers: everything, or what its budget can pay for, with the captions taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..core.spread import spread
from ..diffusion.model import Model
from ..diffusion.sampling import path_of
from .budget import STAGES, Account, Budget
from .plan import ProbePlan
from .probe_costs import EVALUATIONS, ProbeCosts, affordable_probe, rotated
from .training_set import TrainingSet

Agree = Callable[[int], int]
NOISES = 8  # most noises that the gaps of captions that say the same take turns at
NANO = 1e9  # processes agree on whole numbers


@dataclass(frozen=True)
class Coverage:
    """What one measurement covers.

    Attributes:
        sampled: training images whose captions are sampled; none is allowed.
        gaps: training images whose captions' gap is measured.
        seeds: samples of each sampled caption.
        resolution: grid positions an exit may be left open by; 0 looks for no exits.
        timesteps: that training captions are sampled with; as the plan has it when 0.
        heldout: also measure the gap of held-out prompts.
        critical_scales: also measure the critical scales that the plan asks for.
        sample_heldout: also sample held-out captions, whatever it costs.
        taught: sample some of them to see what was taught, where that is measured.
        precision: what the budget bought, in words.
    """

    sampled: tuple[int, ...]
    gaps: tuple[int, ...]
    seeds: int
    resolution: int = 1
    timesteps: int = 0
    heldout: bool = True
    critical_scales: bool = True
    sample_heldout: bool = True
    taught: bool = True
    precision: str = ""


class Spending:
    """What the probes of a run may cost, and what they have cost so far.

    Args:
        plan: its budget holds for every probe.

    Attributes:
        budget: None where there is no limit.
        account: seconds that are left, and what things cost.
        turns: captions that budgets have paid for so far.
        left_at: when the last probe ended, on the monotonic clock.
    """

    def __init__(self, plan: ProbePlan) -> None:
        self.plan, self.budget, self.account = plan, Budget.parse(plan.budget), Account()
        self.turns = {"gaps": 0, "sampled": 0}
        self.left_at = time.monotonic()

    def copy(self) -> Spending:
        """One that spends on its own."""
        other = Spending(self.plan)
        other.budget, other.account, other.turns, other.left_at = (
            self.budget, self.account.copy(), dict(self.turns), self.left_at,
        )  # fmt: skip
        return other

    @contextmanager
    def charged(self, name: str, epoch: int) -> Iterator[None]:
        """Inside, time is the probe's and not training's; what it took is remembered as the price of `name`."""
        start = time.monotonic()
        yield
        self.account.prices[name] = time.monotonic() - start
        self.pay(self.account.prices[name], epoch)

    def affords(self, name: str, epoch: int) -> bool:
        """Whether what is left of a budget of time pays for one more picture; the base model's are free."""
        if self.budget is None or self.budget.share is None or epoch < 0:
            return True
        return self.account.prices.get(name, 0.0) <= self.account.balance

    def pay(self, seconds: float, epoch: int) -> None:
        """Charges a probe; the base model's is free."""
        self.account.balance -= seconds if epoch >= 0 else 0.0
        self.left_at = time.monotonic()

    def costs(self, model: Model, training: TrainingSet, taught: int = 0) -> ProbeCosts:
        """What a probe of this model may consist of; `taught` samples of held-out prompts beside the others."""
        schedule, alone = model.schedule, self.plan.budget_timesteps or self.plan.timesteps
        path, fewer = (path_of(schedule, schedule.grid(n), self.plan.solver) for n in (self.plan.timesteps, alone))
        images = min(self.plan.critical_scales, len(training.captions))
        held = 0 if training.heldout_images is None else min(self.plan.critical_scales, len(training.heldout))
        timed = self.budget is not None and self.budget.share is not None
        return ProbeCosts(
            self.plan.captions,
            len(training.captions),
            self.plan.seeds,
            evaluations=len(path.nodes),
            evaluations_alone=len(fewer.nodes),
            heldout=len(training.heldout),
            noises=min(NOISES, 1 + max(training.rank_of)),
            critical_scales=images + held,
            taught=taught,
            unit=max(1, self.plan.chunk // 8) if timed else 1,  # batches are padded: a row more may cost nothing
        )

    def coverage(self, costs: ProbeCosts, epoch: int, now: float, agree: Agree) -> Coverage | None:
        """What this probe covers, or None when it cannot be paid."""
        everything = tuple(range(costs.gap_captions))
        if self.budget is None or epoch < 0:
            return Coverage(tuple(spread(costs.gap_captions, self.plan.captions)), everything, self.plan.seeds)
        allowance, prices = self._means(now, agree)
        bought = affordable_probe(allowance, costs, prices)
        if bought is None:
            return None
        return Coverage(
            self._next("sampled", bought.captions, costs.gap_captions),
            everything if bought.gaps == len(everything) else self._next("gaps", bought.gaps, costs.gap_captions),
            bought.seeds,
            bought.resolution,
            timesteps=0 if bought.resolution else self.plan.budget_timesteps or 0,
            heldout=bought.heldout,
            critical_scales=bought.critical_scales > 0,
            sample_heldout=False,
            taught=bought.taught,
            precision=bought.precision(self.plan.timesteps, len(everything), self.plan.budget_timesteps or 0),
        )

    def _means(self, now: float, agree: Agree) -> tuple[float, Mapping[str, float]]:
        """What this probe may spend, and what each stage costs in that currency; the same in all processes."""
        if self.budget is None or self.budget.share is None:
            return float(self.budget.evals or 0) if self.budget else 0.0, EVALUATIONS
        self.account.allow(self.budget.share * (now - self.left_at))
        allowance = agree(round(self.account.spendable() * NANO)) / NANO
        return allowance, {stage: -agree(-round(self.account.price(stage) * NANO)) / NANO for stage in STAGES}

    def _next(self, what: str, count: int, total: int) -> tuple[int, ...]:
        """The captions whose turn it is."""
        begin = self.turns[what]
        self.turns[what] += count
        return tuple(rotated(total, count, begin))

    def learn(
        self, costs: ProbeCosts, coverage: Coverage, seconds: Mapping[str, float], evaluated: Mapping[str, int]
    ) -> None:
        """Remembers what a row of each stage cost: seconds and evaluations, by stage; padding included where known."""
        pairs = len(coverage.sampled) * coverage.seeds
        searched = evaluated.get("exits", 0) - costs.evaluations * pairs
        rows = {
            "gap": costs.gap(len(coverage.gaps), coverage.heldout),
            "samples": costs.samples_alone(pairs) if coverage.timesteps else costs.samples(pairs),
            "exits": costs.trunk(pairs) + max(0, searched),
            "critical_scales": evaluated.get("critical_scales", 0),
            "taught": costs.samples(costs.taught) if "taught" in seconds else 0,
        }
        self.account.learn(seconds, rows)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {"account": asdict(self.account), "turns": self.turns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what an interrupted run had spent."""
        self.account, self.turns = Account(**state.get("account", {})), {**self.turns, **state.get("turns", {})}
        self.left_at = time.monotonic()
