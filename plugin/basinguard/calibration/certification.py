"""A calibration at work: what is searched, proven and told, on which samples, at what count of evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar, get_args

from ..basin.trajectories import Pairs
from ..core import seeds as seed_table
from ..core.progress import say
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.model import Model
from ..guard.guard import Guard
from ..similarity.taught import Taught
from .bench import Bench, archived_sample, trial_of
from .candidate import Phase, Product, ProductCandidate
from .choice import finalists
from .cost import CalibrationCost, cost, most_products
from .design import Design
from .fixed_sequence import climb, fixed_sequence
from .ladders import Ladder, contenders
from .lessons import HeldoutLessons, LessonPlan, Lessons, TaughtTruth
from .promise import require_terms
from .rules import plain_cfg, rules_of
from .sample_archive import SampleArchive
from .search import Search
from .terms import RANKED, CalibrationTerms
from .trial import Trial, calibration_pairs
from .weights import OpenWeights, Weights, product_weights, require_filterable, require_schedulable

FIRST_SEEDS: Mapping[Phase, int] = {
    "search": seed_table.SEARCH,
    "ranking": seed_table.RANKING,
    "proof": seed_table.CALIBRATION,
}
AnyLessons = TypeVar("AnyLessons", bound=Lessons)


class Certification:
    """A calibration at work: the benches of its phases, and the count of evaluations.

    Args:
        guard: knows the training images.
        weights: epochs and strengths to choose from.
        terms: what is to be promised.
        truth: true images of what was taught and the held-out prompts; None where it cannot be measured.
        archive: of what is drawn; nothing is kept without one.
    """

    def __init__(
        self,
        guard: Guard,
        weights: Weights,
        terms: CalibrationTerms,
        truth: TaughtTruth | None,
        archive: SampleArchive | None = None,
    ) -> None:
        require_terms(terms.alpha, terms.delta)
        require_schedulable(weights, terms)
        require_filterable(weights, terms)
        self.guard, self.weights, self.terms = guard, weights, terms
        self.count, self.archive = EvaluationCount(), archive or SampleArchive()
        with weights.at(weights.epochs[-1], 1.0) as opened:
            self.shape, self.noise = opened.model.latent_shape, opened.model.schedule
            self.timesteps = opened.model.schedule.grid(guard.plan.timesteps)
            trial = self._trial_of_one(opened)
            self.evals_per_sample = 2 * len(trial.probe.path.nodes)
            self._require_rules(trial)
        self._told: dict[Product, Taught | None] = {}
        self.lesson_plan = self._lesson_plan(truth) if weights.graded and truth and truth.prompts else None

    def search(self) -> list[ProductCandidate]:
        """Every product of the grid on few samples."""
        return Search(self._search_bench, self.weights, self.terms, self.timesteps, self.noise).run()

    def rank(self, searched: Sequence[ProductCandidate]) -> list[ProductCandidate]:
        """What may ship of a search, on more samples."""
        products = contenders(searched, self.terms)
        return list(self._bench("ranking").measure(self.weights, products))

    def cost(self) -> CalibrationCost:
        """What the search and the proof take at most."""
        terms, scale = self.terms, self.guard.plan.guidance_scale
        graded, epochs = self.weights.graded, len(self.weights.epochs)
        products = most_products(terms, scale=scale, epochs=epochs, graded=graded)
        samples = [len(self._pairs(phase)) for phase in get_args(Phase)]
        taught = self.lesson_plan.samples if self.lesson_plan else 0
        return cost(products, samples, taught, self.evals_per_sample)

    def prove(self, ladders: Sequence[Ladder]) -> list[list[ProductCandidate]]:
        """What of each ladder is tested: until the first that cannot be proven."""
        bench, share = self._proof_bench, self.terms.delta / len(ladders)
        if self.terms.design == "fixed":
            return [list(fixed_sequence(bench.measure(self.weights, each.steps), share)) for each in ladders]
        return [list(climb(each.steps, each.start, self._tested, share)) for each in ladders]

    def _tested(self, product: Product, delta: float) -> ProductCandidate:
        return next(self._proof_bench.measure(self.weights, [product], delta))

    def measure(self, product: Product) -> ProductCandidate:
        """A product beside those that are tested, on the same samples."""
        return self._tested(product, self.terms.delta)

    def taught(self, product: Product) -> Taught | None:
        """What is left of what was taught on held-out prompts, with noise that nothing was chosen by; drawn once."""
        if self._heldout_lessons is None:
            return None
        if product not in self._told:
            self._told[product] = self._measured(product, self._heldout_lessons, self._heldout_lessons.pairs)
            say(f"held-out: {product}: taught {self._told[product]}")
        return self._told[product]

    def compared(self, tested: Sequence[ProductCandidate]) -> dict[Product, Taught]:
        """The finalists of all and of plain CFG on held-out prompts; empty where nothing is to be decided by them."""
        lessons = self._heldout_lessons
        plain = [c for c in tested if c.product.plain]
        groups = [final for group in (tested, plain) if len(final := finalists(group)) > 1]
        products = dict.fromkeys(c.product for group in groups for c in group)
        if lessons is None:
            return {}
        results = {product: self._measured(product, lessons, lessons.choosing) for product in products}
        for product, taught in results.items():
            say(f"finalist: {product}: taught {taught}")
        return {product: taught for product, taught in results.items() if taught is not None}

    def _measured(self, product: Product, lessons: HeldoutLessons, pairs: Pairs) -> Taught | None:
        with product_weights(self.weights, product) as opened:
            trial = trial_of(opened, self.guard, lessons.prompts, pairs, self.count)
            latents, _ = archived_sample(self.archive, product, trial, lessons.prompts, self.count)
            images = opened.model.decode(latents)
        return lessons.measure(images, lessons.texts, self.guard.is_copy(images))

    def most_taught_plain(self, searched: Sequence[ProductCandidate]) -> Product:
        """Plain CFG with the whole fine-tune at the epoch and scale that keep most, whatever else they copy.

        Of the best of the search and of the newest epoch, which may keep much on captions that it does not copy.
        """
        plain = [c for c in searched if c.product.whole and c.product.plain]
        best = max(plain, key=lambda c: c.gain, default=None)
        able = [*([best.product] if best else []), self.whole()]
        return max(able, key=lambda product: t.value.value if (t := self.taught(product)) and t.value else -math.inf)

    def whole(self) -> Product:
        """Plain CFG at the user's scale with the whole fine-tune of the newest epoch."""
        return Product(plain_cfg(self.guard.plan.guidance_scale, self.noise), 1.0, self.weights.epochs[-1])

    @cached_property
    def _search_bench(self) -> Bench:
        return self._bench("search")

    @cached_property
    def _proof_bench(self) -> Bench:
        return self._bench("proof")

    def _bench(self, phase: Phase) -> Bench:
        pairs, terms, lessons = self._pairs(phase), self.terms, self._caption_lessons
        design = self.design if phase == "proof" else Design(len(pairs))
        return Bench(self.guard, terms.alpha, phase, pairs, design, lessons, self.count, self.archive)

    @property
    def design(self) -> Design:
        """How many pairs a proof takes."""
        return Design.of(self.terms.design, len(self.guard.training.captions), self.terms.pairs)

    def _lesson_plan(self, truth: TaughtTruth) -> LessonPlan:
        asked = [k for phase in get_args(Phase) for k in self._pairs(phase).prompt.tolist()]
        captions = [self.guard.training.captions[k] for k in asked]
        return LessonPlan(self.guard, truth, self.terms, captions, self.archive)

    @cached_property
    def _caption_lessons(self) -> Lessons | None:
        return self._on_base(LessonPlan.caption_lessons)

    @cached_property
    def _heldout_lessons(self) -> HeldoutLessons | None:
        return self._on_base(LessonPlan.heldout_lessons)

    def _on_base(self, lessons: Callable[[LessonPlan, Model, EvaluationCount], AnyLessons]) -> AnyLessons | None:
        if self.lesson_plan is None:
            return None
        with self.weights.at(self.weights.epochs[-1], 0.0) as opened:
            return lessons(self.lesson_plan, opened.model, self.count)

    def _pairs(self, phase: Phase) -> Pairs:
        searched = self.terms.search_pairs
        count = {"search": searched, "ranking": RANKED * searched, "proof": self.design.pairs}[phase]
        return calibration_pairs(len(self.guard.training.captions), count, self.shape, FIRST_SEEDS[phase])

    def _trial_of_one(self, opened: OpenWeights) -> Trial:
        """One pair, nothing measured yet."""
        captions, pair = self.guard.training.captions, calibration_pairs(1, 1, self.shape, 0)
        return trial_of(opened, self.guard, captions, pair, self.count)

    def _require_rules(self, trial: Trial) -> None:
        """Refuses what cannot be measured before anything is."""
        for rule in rules_of(self.terms, self.timesteps, self.noise, self.guard.plan.guidance_scale):
            trial.set_to(rule)
