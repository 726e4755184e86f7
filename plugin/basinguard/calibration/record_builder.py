"""From a guarded fine-tune to its `Record`: which product it ships as, what that was measured to do, and on what.

`search` and `ladders` decide which products are worth a proof; each ladder is a fixed sequence with its share of delta.
Among all that are proven `choice.best` ships, compared on held-out prompts where training captions do not decide; what
it taught is measured there anew, beside plain CFG. If none is proven, the record says so in `promise` and carries the
safest one tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch

from ..core import seeds as seed_table
from ..core.estimate import Estimate
from ..core.files import joined_sha256
from ..core.progress import say, working
from ..core.provenance import Provenance, versions
from ..core.record import Record, Sampler, Strength, stored_similarities
from ..core.recorded_weights import RecordedWeights
from ..guard.guard import Guard
from ..similarity.taught import Taught
from .candidate import Product, ProductCandidate
from .certification import Certification
from .choice import best
from .ladders import chains
from .lessons import TaughtTruth
from .promise import no_promise, population, promise
from .sample_archive import SampleArchive
from .terms import CalibrationTerms
from .weights import Weights

FLOW, FLOW_GRID = "flow_prediction", "Euler, the pipeline's own timesteps"


@dataclass(frozen=True)
class Certificate:
    """A record with everything that was tried on the way to it.

    Attributes:
        record: of the product to ship.
        tried: every candidate: those of the search, then those tested, in order.
        shipped: the product of the record, as it was tested.
        plain: plain CFG with the whole fine-tune of the newest epoch, which training without a guard gives.
        safe: the best proven product of plain CFG, for plain loaders; None where none was proven.
        most_taught_plain: plain CFG with the whole fine-tune at the epoch and scale that keep most, whatever it copies.
        heldout: what is left of what was taught on held-out prompts, of what ships, `safe`, `plain` and
            `most_taught_plain`; empty where it cannot be measured.
        evaluations: of the network, in all.
    """

    record: Record
    tried: list[ProductCandidate]
    shipped: ProductCandidate
    plain: ProductCandidate
    safe: ProductCandidate | None
    most_taught_plain: Product
    heldout: Mapping[Product, Taught]
    evaluations: int

    @property
    def safe_record(self) -> Record | None:
        """The record of `safe`, where that is not what ships anyway."""
        safe = self.safe
        if safe is None or safe is self.shipped:
            return None
        update = {
            "guidance": safe.product.guidance,
            "product": _recorded_weights(safe.product),
            "risk": safe.risk,
            "similarities": stored_similarities(safe.similarities),
            "taught": _value(self.heldout, safe.product),
            "alignment": safe.alignment,
            "promise": promise(self.record.alpha, self.record.delta),
            "unruled": None,
            "strength": None,
        }
        return self.record.model_copy(update=update)


@torch.no_grad()
def certify(
    guard: Guard,
    weights: Weights,
    terms: CalibrationTerms,
    provenance: Provenance,
    *,
    truth: TaughtTruth | None = None,
    archive: SampleArchive | None = None,
) -> Certificate:
    """Finds the product to ship and writes down what was promised.

    Args:
        guard: knows the training images.
        weights: epochs and strengths to choose from.
        terms: what is to be promised.
        provenance: goes into the record.
        truth: what was taught; without it, or without a base model, alignment decides, without that the boldest.
        archive: of what is drawn, so that a stopped calibration goes on; nothing is kept without one.

    Raises:
        ValueError: alpha or delta out of range, no pairs, an anchor that the model cannot have, or finer steps that
            the sampler cannot take.
    """
    work = Certification(guard, weights, terms, truth, archive)
    say(str(cost := work.cost()))
    with working("calibration", cost.evaluations):
        searched = work.search()
        ranked = work.rank(searched)
        ladders = chains(ranked, terms, work.design)
        tested = [c for ladder in work.prove(ladders) for c in ladder]
        whole = work.whole()
        plain = next((c for c in tested if c.product == whole), None) or work.measure(whole)
        heldout = work.compared(tested) if terms.counts == "taught" else {}
        choose = partial(best, heldout=heldout, counts=terms.counts)
        proven = choose(c for c in tested if c.product.stock) or choose(tested)
        chosen = proven or min((plain, *tested), key=lambda c: c.risk.value)
        safe = choose(c for c in tested if c.product.plain)
        tried = [*searched, *ranked, *tested, *([plain] if plain not in tested else [])]
        writer = _Writer(work, provenance, chosen, plain, safe, work.most_taught_plain(searched), len(ladders))
        return writer.certificate(tried)


@dataclass(frozen=True)
class _Writer:
    """What a record is written from."""

    work: Certification
    provenance: Provenance
    shipped: ProductCandidate
    plain: ProductCandidate
    safe: ProductCandidate | None
    most_taught_plain: Product
    ladders: int

    @cached_property
    def heldout(self) -> dict[Product, Taught]:
        """What is left of what was taught on held-out prompts, of every product that is told of."""
        safe = () if self.safe is None else (self.safe.product,)
        reported = (self.shipped.product, *safe, self.plain.product, self.most_taught_plain)
        return {product: taught for product in reported if (taught := self.work.taught(product)) is not None}

    def certificate(self, tried: list[ProductCandidate]) -> Certificate:
        return Certificate(
            self.record(tried),
            tried,
            self.shipped,
            self.plain,
            self.safe,
            self.most_taught_plain,
            self.heldout,
            self.work.count.total,
        )

    def record(self, tried: Sequence[ProductCandidate]) -> Record:
        guard, terms, shipped, provenance = self.work.guard, self.work.terms, self.shipped, self.provenance
        base = next((c for c in tried if c.product.strength == 0), None)
        measured = self.heldout.get(shipped.product)
        return Record(
            guidance=shipped.product.guidance,
            product=_recorded_weights(shipped.product),
            risk=shipped.risk,
            similarities=stored_similarities(shipped.similarities),
            plain=self.plain.risk,
            unruled=self._unruled(),
            base_risk=base.risk if base else None,
            taught=_value(self.heldout, shipped.product),
            plain_taught=_value(self.heldout, self.plain.product),
            best_plain_taught=_value(self.heldout, self.most_taught_plain),
            taught_rulers=() if measured is None else tuple(measured.rulers.items()),
            alignment=shipped.alignment,
            plain_alignment=self.plain.alignment,
            alpha=terms.alpha,
            delta=terms.delta,
            promise=promise(terms.alpha, terms.delta) if shipped.proven else "",
            population=self._population(),
            metric=guard.embedder.metric,
            sampler=Sampler(
                scheduler=FLOW_GRID if provenance.prediction_type == FLOW else f"{guard.plan.solver}, trailing",
                timesteps=guard.plan.timesteps,
                prediction_type=provenance.prediction_type,
                resolution=provenance.resolution,
                scale=guard.plan.guidance_scale,
            ),
            seeds=(seed_table.CALIBRATION, seed_table.CALIBRATION + shipped.risk.n - 1),
            base=provenance.base,
            weights_sha256=provenance.weights_sha256,
            dataset_sha256=provenance.dataset_sha256,
            files_sha256=joined_sha256(guard.training.image_sha256),
            versions=versions(),
            strength=self._strength(),
            history=tuple(guard.history),
        )

    def _population(self) -> str:
        pairs, terms = self.shipped.risk.n, self.work.terms
        covered = population(len(self.work.guard.training.captions), pairs)
        if self.shipped.proven:
            return covered
        return f"{covered}; {no_promise(terms.alpha, terms.delta / self.ladders, terms.pairs)}"

    def _unruled(self) -> Estimate | None:
        """What these weights do for somebody who loads them without the rule and the strengths by timestep."""
        product = self.shipped.product
        if product.plain:
            return None
        bare = replace(product, guidance=self.work.whole().guidance, strength_schedule=None)
        return self.plain.risk if bare == self.plain.product else self.work.measure(bare).risk

    def _strength(self) -> Strength | None:
        """The promise for plain CFG that these very weights, or a share of them, carry; none where one is filtered."""
        safe, terms, shipped = self.safe, self.work.terms, self.shipped.product
        if safe is None or safe.product.epoch != shipped.epoch or safe.product.update_filter or shipped.update_filter:
            return None
        product = safe.product
        where = f"with plain CFG of scale {product.scale:g} at strength {product.strength:g}"
        return Strength(
            kind="interpolation",
            value=product.strength,
            risk=safe.risk,
            scale=product.scale,
            taught=_value(self.heldout, product),
            alignment=safe.alignment,
            promise=f"{where}, {promise(terms.alpha, terms.delta)}",
        )


def _recorded_weights(product: Product) -> RecordedWeights:
    kind: Literal["lora", "interpolation"] = "interpolation" if product.strength_schedule is None else "lora"
    schedule = product.strength_schedule
    return RecordedWeights(
        epoch=product.epoch,
        strength=product.strength,
        kind=kind,
        strength_schedule=schedule,
        update_filter=product.update_filter,
    )


def _value(heldout: Mapping[Product, Taught], product: Product) -> Estimate | None:
    """What a product is told to keep; None where it was not measured or cannot be resolved."""
    return heldout[product].value if product in heldout else None
