"""From a guarded fine-tune to its `Record`: which product it ships as, what that was measured to do, and on what.

`search` decides which products are worth a proof; each chain of them is a fixed sequence with its share of delta; among
all that are proven `choice.best` ships, and what it taught is measured once more on fresh seeds. If none is proven, the
record says so in `promise` and carries the safest one tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..core import seeds as seed_table
from ..core.estimate import Estimate
from ..core.progress import say
from ..core.provenance import Provenance, versions
from ..core.record import Record, Sampler, Strength
from ..core.record import RecordedWeights as RecordedProduct
from ..diffusion.evaluation_count import EvaluationCount
from ..guard.guard import Guard
from ..similarity.taught import Taught
from .bench import Bench
from .candidate import Phase, Product, ProductCandidate
from .choice import best
from .cost import CalibrationCost, cost, most_products
from .fixed_sequence import fixed_sequence
from .lessons import TaughtTruth, lessons_for
from .promise import no_promise, population, promise, require_terms
from .search import chains, explore, plain_cfg, rules_of
from .terms import CalibrationTerms
from .trial import Trial, calibration_pairs
from .weights import OpenWeights, Weights


@dataclass(frozen=True)
class Certificate:
    """A record with everything that was tried on the way to it.

    Attributes:
        record: of the product to ship.
        tried: every candidate: those of the search, then those tested, in order.
        shipped: the product of the record, as it was tested.
        plain: plain CFG with the whole fine-tune of the newest epoch, which training without a guard gives.
        safe: the best proven product of plain CFG, for plain loaders; None where none was proven.
        evaluations: of the network, in all.
    """

    record: Record
    tried: list[ProductCandidate]
    shipped: ProductCandidate
    plain: ProductCandidate
    safe: ProductCandidate | None
    evaluations: int

    @property
    def safe_record(self) -> Record | None:
        """The record of `safe`, where that is not what ships anyway."""
        safe = self.safe
        if safe is None or safe is self.shipped:
            return None
        update = {
            "guidance": safe.product.guidance,
            "product": RecordedProduct(epoch=safe.product.epoch, strength=safe.product.strength),
            "risk": safe.risk,
            "taught": safe.left,
            "alignment": safe.alignment,
            "promise": promise(self.record.alpha, self.record.delta),
            "unruled": None,
            "strength": None,
        }
        return self.record.model_copy(update=update)


class Certification:
    """A calibration at work: the benches of its phases, and the count of evaluations.

    Args:
        guard: knows the training images.
        weights: epochs and strengths to choose from.
        terms: what is to be promised.
        truth: true images of what was taught and the held-out prompts; None where it cannot be measured.
    """

    def __init__(self, guard: Guard, weights: Weights, terms: CalibrationTerms, truth: TaughtTruth | None) -> None:
        require_terms(terms.alpha, terms.delta)
        self.guard, self.weights, self.terms, self.truth = guard, weights, terms, truth
        self.count = EvaluationCount()
        with weights.at(weights.epochs[-1], 1.0) as opened:
            self.shape, self.noise = opened.model.latent_shape, opened.model.schedule
            self.timesteps = opened.model.schedule.grid(guard.plan.timesteps)
            trial = self._trial_of_one(opened)
            self.evals_per_sample = 2 * len(trial.probe.path.nodes)
            self._require_rules(trial)
        self.lessons = lessons_for(guard, weights, truth, terms, self.count)

    def search(self) -> list[ProductCandidate]:
        """Every product of the grid on few samples."""
        return explore(self._search_bench, self.weights, self.terms, self.timesteps, self.noise)

    def cost(self) -> CalibrationCost:
        """What the search and the proof take at most."""
        terms, scale = self.terms, self.guard.plan.scale
        rules = len(rules_of(terms, self.timesteps, self.noise, scale))
        graded, epochs = self.weights.graded, len(self.weights.epochs)
        products = most_products(terms, scale=scale, epochs=epochs, graded=graded, rules=rules)
        beside = 2 * terms.taught_samples if self.lessons else 0
        samples = self._search_bench.samples, self._proof_bench.samples
        return cost(products, *samples, beside, self.evals_per_sample)

    def prove(self, ladders: Sequence[Sequence[Product]]) -> list[list[ProductCandidate]]:
        """Each ladder from its safest product until the first that cannot be proven."""
        bench, share = self._proof_bench, self.terms.delta / len(ladders)
        return [list(fixed_sequence(bench.measure(self.weights, ladder), share)) for ladder in ladders]

    def measure(self, product: Product) -> ProductCandidate:
        """A product beside those that are tested, on the same samples."""
        return next(self._proof_bench.measure(self.weights, [product]))

    def taught_anew(self, product: Product) -> Taught | None:
        """What is left of what was taught, on seeds that nothing was chosen by."""
        lessons = self.lessons.get("anew")
        if lessons is None:
            return None
        bench = replace(self._proof_bench, lessons=lessons)
        with self.weights.at(product.epoch, product.strength) as opened:
            return bench.on(opened).taught(product.guidance)

    def whole(self) -> Product:
        """Plain CFG at the user's scale with the whole fine-tune of the newest epoch."""
        return Product(plain_cfg(self.guard.plan.scale, self.noise), 1.0, self.weights.epochs[-1])

    @cached_property
    def _search_bench(self) -> Bench:
        return self._bench("search", self.terms.search_pairs, seed_table.SEARCH)

    @cached_property
    def _proof_bench(self) -> Bench:
        return self._bench("proof", self.terms.pairs, seed_table.CALIBRATION)

    def _bench(self, phase: Phase, pairs: int, first_seed: int) -> Bench:
        drawn = calibration_pairs(len(self.guard.training.captions), pairs, self.shape, first_seed)
        return Bench(self.guard, self.terms.alpha, phase, drawn, self.lessons.get(phase), self.count)

    def _trial_of_one(self, opened: OpenWeights) -> Trial:
        """One pair, nothing measured yet."""
        bench = Bench(self.guard, self.terms.alpha, "search", calibration_pairs(1, 1, self.shape, 0))
        return bench.on(opened).risk_trial

    def _require_rules(self, trial: Trial) -> None:
        """Refuses what cannot be measured before anything is."""
        for rule in rules_of(self.terms, self.timesteps, self.noise, self.guard.plan.scale):
            trial.set_to(rule)


@torch.no_grad()
def certify(
    guard: Guard,
    weights: Weights,
    terms: CalibrationTerms,
    provenance: Provenance,
    *,
    truth: TaughtTruth | None = None,
) -> Certificate:
    """Finds the product to ship and writes down what was promised.

    Args:
        guard: knows the training images.
        weights: epochs and strengths to choose from.
        terms: what is to be promised.
        provenance: goes into the record.
        truth: what was taught; without it, or without a base model, alignment decides, without that the boldest.

    Raises:
        ValueError: alpha or delta out of range, no pairs, an anchor that the model cannot have, or finer steps that
            the sampler cannot take.
    """
    work = Certification(guard, weights, terms, truth)
    say(str(work.cost()))
    searched = work.search()
    ladders = chains(searched, terms)
    tested = [c for ladder in work.prove(ladders) for c in ladder]
    chosen = best(c for c in tested if c.product.stock) or best(tested) or tested[0]
    safe = best(c for c in tested if c.product.guidance.plain)
    whole = work.whole()
    plain = next((c for c in tested if c.product == whole), None) or work.measure(whole)
    tried = [*searched, *tested, *([plain] if plain not in tested else [])]
    record = _Writer(work, provenance, chosen, plain, safe, len(ladders)).record(searched)
    return Certificate(record, tried, chosen, plain, safe, work.count.total)


@dataclass(frozen=True)
class _Writer:
    """What a record is written from."""

    work: Certification
    provenance: Provenance
    shipped: ProductCandidate
    plain: ProductCandidate
    safe: ProductCandidate | None
    ladders: int

    def record(self, searched: Sequence[ProductCandidate]) -> Record:
        guard, terms, shipped, provenance = self.work.guard, self.work.terms, self.shipped, self.provenance
        base = next((c for c in searched if c.product.strength == 0), None)
        anew = self.work.taught_anew(shipped.product)
        taught = None if anew is None else anew.value
        return Record(
            guidance=shipped.product.guidance,
            product=RecordedProduct(epoch=shipped.product.epoch, strength=shipped.product.strength),
            risk=shipped.risk,
            plain=self.plain.risk,
            unruled=self._unruled(),
            base_risk=base.risk if base else None,
            taught=taught,
            plain_taught=self.plain.left,
            taught_rulers=() if anew is None else tuple(anew.rulers.items()),
            alignment=shipped.alignment,
            plain_alignment=self.plain.alignment,
            alpha=terms.alpha,
            delta=terms.delta,
            promise=promise(terms.alpha, terms.delta) if shipped.proven else "",
            population=self._population(),
            metric=guard.embedder.metric,
            sampler=Sampler(
                scheduler=f"{guard.plan.solver}, trailing",
                timesteps=guard.plan.timesteps,
                prediction_type=provenance.prediction_type,
                resolution=provenance.resolution,
                scale=guard.plan.scale,
            ),
            seeds=(seed_table.CALIBRATION, seed_table.CALIBRATION + shipped.risk.n - 1),
            base=provenance.base,
            weights_sha256=provenance.weights_sha256,
            dataset_sha256=provenance.dataset_sha256,
            versions=versions(),
            strength=self._strength(taught),
            history=tuple(guard.history),
        )

    def _population(self) -> str:
        pairs, terms = self.shipped.risk.n, self.work.terms
        covered = population(len(self.work.guard.training.captions), pairs)
        if self.shipped.proven:
            return covered
        return f"{covered}; {no_promise(terms.alpha, terms.delta / self.ladders, pairs)}"

    def _unruled(self) -> Estimate | None:
        """What these weights do for somebody who loads them without the rule."""
        product = self.shipped.product
        if product.guidance.plain:
            return None
        bare = replace(product, guidance=self.work.whole().guidance)
        return self.plain.risk if bare == self.plain.product else self.work.measure(bare).risk

    def _strength(self, taught: Estimate | None) -> Strength | None:
        """The promise for plain CFG that these very weights, or a share of them, carry."""
        safe, terms = self.safe, self.work.terms
        if safe is None or safe.product.epoch != self.shipped.product.epoch:
            return None
        product = safe.product
        where = f"with plain CFG of scale {product.scale:g} at strength {product.strength:g}"
        return Strength(
            kind="interpolation",
            value=product.strength,
            risk=safe.risk,
            scale=product.scale,
            taught=taught if safe is self.shipped else safe.left,
            alignment=safe.alignment,
            promise=f"{where}, {promise(terms.alpha, terms.delta)}",
        )
