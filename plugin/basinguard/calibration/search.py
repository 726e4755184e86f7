"""Which products are worth a proof: a grid that is walked in rounds, on few samples.

A product is (epoch, strength, rule or plain CFG, scale). First plain CFG with the whole fine-tune of every epoch, then
every other strength of the best and of the epoch after them, the strengths between around the best of these, and other
guidance scales there. Then rules, with the whole fine-tune: the earliest of each setting at the best epoch for plain
CFG and at every one after it, since a rule may let an epoch be shipped that copies without it; every other rule at the
epoch where these keep most; then transitions between. Strengths by timestep and filters of the update, where they are
asked for, come last: they too may let an epoch be shipped that copies without them.
Nothing here is promised, and no pair of the search serves the proof, so the choice of what to prove needs no
correction.

Source: Pareto Testing, arXiv 2210.07913, section 4 (choose and order on separate data, then test in sequence).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..diffusion.noise_schedule import NoiseSchedule
from .bench import Bench
from .candidate import Product, ProductCandidate, strongest
from .danger import dangers
from .rules import between, earliest, plain_cfg, rules_of
from .terms import HALVINGS, CalibrationTerms
from .weights import Weights, recorded

LEADERS = 2  # (epoch, strength) around which other scales are tried


@dataclass(frozen=True)
class Search:
    """A search at work.

    Attributes:
        bench: of the search.
        weights: epochs and strengths to choose from.
        terms: the rest of the grid.
        timesteps, noise: the sampler's grid and the model's noise schedule.
        tried: every candidate so far.
    """

    bench: Bench
    weights: Weights
    terms: CalibrationTerms
    timesteps: Tensor
    noise: NoiseSchedule
    tried: list[ProductCandidate] = field(default_factory=list)

    def run(self) -> list[ProductCandidate]:
        """Every round; see the module.

        Returns:
            Every candidate; the base model first where it is known.
        """
        self.plain()
        if self.terms.settings:
            self.rules()
        if self.terms.strength_schedules:
            self.schedules()
        if self.terms.update_filters:
            self.filters()
        return self.tried

    def plain(self) -> None:
        """Shares and guidance scales of plain CFG."""
        scale, *others = self.terms.plain_scales(self.bench.guard.plan.guidance_scale)
        strengths = sorted(self.terms.strengths) if self.weights.graded else [1.0]
        epochs, guidance = self.weights.epochs, plain_cfg(scale, self.noise)
        grid = [Product(guidance, s, e) for e in epochs for s in strengths]
        base = [Product(guidance, 0.0, epochs[-1])] if self.weights.graded else []
        self.measure([*base, *(p for p in grid if p.strength == strengths[-1])])
        shared = _epochs_to_share(self.leaders, epochs)
        self.measure(p for p in grid if p.epoch in shared and p.strength in strengths[::-2])
        self.measure(_neighbours(self.leaders, grid))
        near = _neighbours(self.leaders[:1], grid)
        self.measure(replace(p, guidance=plain_cfg(other, self.noise)) for p in near for other in others)

    def rules(self) -> None:
        """Rules, with the whole fine-tune of an epoch."""
        rules = rules_of(self.terms, self.timesteps, self.noise, self.bench.guard.plan.guidance_scale)
        self.measure(Product(rule, 1.0, epoch) for epoch in self._later for rule in earliest(rules))
        self.measure(Product(rule, 1.0, self._best_rule.epoch) for rule in rules)
        for _ in range(0 if self.terms.transitions else HALVINGS):
            best = self._best_rule
            own = [c.product.guidance for c in self._ruled if c.product.epoch == best.epoch]
            halfway = between(best.guidance, own, self.timesteps, self.noise)
            self.measure(replace(best, guidance=rule) for rule in halfway)

    def schedules(self) -> None:
        """Strengths by timestep: by plain CFG at its best epoch and at every later one, then with the best rule."""
        chosen = [recorded(schedule) for schedule in self.terms.strength_schedules]
        guidance = plain_cfg(self.bench.guard.plan.guidance_scale, self.noise)
        self.measure(Product(guidance, 1.0, epoch, schedule) for epoch in self._later for schedule in chosen)
        if self._ruled:
            best = self._best_rule
            self.measure(replace(best, strength_schedule=schedule) for schedule in chosen)

    def filters(self) -> None:
        """Filters of the update, with plain CFG at its best epoch and at every later one."""
        guidance = plain_cfg(self.bench.guard.plan.guidance_scale, self.noise)
        names = self.terms.update_filters
        self.measure(Product(guidance, 1.0, epoch, update_filter=name) for epoch in self._later for name in names)

    def measure(self, products: Iterable[Product]) -> None:
        """Tries those that were not tried before."""
        before = {c.product for c in self.tried}
        self.tried.extend(self.bench.measure(self.weights, [p for p in products if p not in before]))

    @property
    def leaders(self) -> list[ProductCandidate]:
        """The plain candidates to go on from."""
        plain = [c for c in self.tried if c.product.plain and c.product.strength > 0]
        return leaders(plain, self.bench.alpha)

    @property
    def _later(self) -> Sequence[int | None]:
        """The best epoch for plain CFG and every one after it, listed before anything else is tried at them."""
        epochs = self.weights.epochs
        return epochs[epochs.index(self.leaders[0].product.epoch) :]

    @property
    def _ruled(self) -> list[ProductCandidate]:
        return [c for c in self.tried if not c.product.guidance.plain and c.product.strength_schedule is None]

    @property
    def _best_rule(self) -> Product:
        return leaders(self._ruled, self.bench.alpha)[0].product


def leaders(tried: Sequence[ProductCandidate], alpha: float) -> list[ProductCandidate]:
    """Those with the most gain that may keep the risk, at most `LEADERS`; the least dangerous where none may."""
    order = dangers(tried)
    return strongest(tried, alpha, LEADERS) or [min(tried, key=lambda c: order[c.product])]


def _neighbours(chosen: Iterable[ProductCandidate], grid: Sequence[Product]) -> list[Product]:
    """The strengths of the chosen products' epochs that are at most one step from theirs, in the grid's order."""
    near: list[Product] = []
    for epoch, strength in ((c.product.epoch, c.product.strength) for c in chosen):
        own = [p for p in grid if p.epoch == epoch]
        at = [p.strength for p in own].index(strength)
        near += own[max(0, at - 1) : at + 2]
    return [p for p in grid if p in near]


def _epochs_to_share(best: Sequence[ProductCandidate], epochs: Sequence[int | None]) -> set[int | None]:
    """The epochs of these candidates, best first, and the one after the best: a share of it may be safe yet."""
    own = [c.product.epoch for c in best]
    return {*own, *epochs[epochs.index(own[0]) + 1 :][:1]}
