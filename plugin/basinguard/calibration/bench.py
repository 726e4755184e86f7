"""What the products of one phase are measured on: the same captions, held-out prompts and noise for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..basin.trajectories import GuidedModel, Pairs
from ..core.progress import say
from ..core.record import Guidance
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.model import Model
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from ..similarity.taught import Taught
from .candidate import PairScores, Phase, Product, ProductCandidate, too_many
from .lessons import Lessons
from .trial import Trial
from .weights import OpenWeights, Weights


@dataclass(frozen=True)
class Bench:
    """What the products of one phase are measured on.

    Attributes:
        guard: knows the training images, and scores captions.
        alpha: the risk that may not be exceeded.
        phase: of the candidates.
        pairs: training captions with seeds, for the risk.
        lessons: for what is left of what was taught; None where that cannot be measured.
        count: of the network's evaluations, of all phases.
    """

    guard: Guard
    alpha: float
    phase: Phase
    pairs: Pairs
    lessons: Lessons | None = None
    count: EvaluationCount = field(default_factory=EvaluationCount)

    @property
    def samples(self) -> int:
        """Of each product."""
        return len(self.pairs) + (0 if self.lessons is None else len(self.lessons.pairs))

    def measure(self, weights: Weights, products: Iterable[Product]) -> Iterator[ProductCandidate]:
        """Each product, in order; neighbours with the same weights share what their samples have in common."""
        for (epoch, strength), group in groupby(products, key=lambda p: (p.epoch, p.strength)):
            with weights.at(epoch, strength) as opened:
                model = self.on(opened)
                for product in group:
                    candidate = model.measure(product)
                    say(f"{self.phase}: {candidate}")
                    yield candidate

    def on(self, opened: OpenWeights) -> BenchedModel:
        """A model on this bench."""
        return BenchedModel(self, opened)


class BenchedModel:
    """A model with the weights of a product, on a bench."""

    def __init__(self, bench: Bench, opened: OpenWeights) -> None:
        self.bench, self.model = bench, opened.model
        captions, lessons = bench.guard.training.captions, bench.lessons
        self.risk_trial = self._trial(opened, captions, bench.pairs)
        self.lesson_trial = None if lessons is None else self._trial(opened, lessons.prompts, lessons.pairs)

    def _trial(self, opened: OpenWeights, prompts: Sequence[str], pairs: Pairs) -> Trial:
        anchored = None if opened.anchored is None else opened.anchored.denoiser(prompts)
        return Trial(self._guided(opened.model, prompts), pairs, anchored)

    def _guided(self, model: Model, prompts: Sequence[str]) -> GuidedModel:
        return guided_model(model, prompts, self.bench.guard.plan, self.bench.count)

    def measure(self, product: Product) -> ProductCandidate:
        """What a product copies, and what it keeps."""
        guard, prompt = self.bench.guard, self.bench.pairs.prompt
        latents, evals = self.risk_trial.sample(product.guidance)
        images = self.model.decode(latents)
        matches, scores = guard.matches(images), self._alignment(images)
        similarities = torch.tensor([match.similarity for match in matches])
        copies = guard.copy_detector.copied(matches)
        lost = self.bench.phase == "search" and too_many(int(copies.sum()), len(copies), self.bench.alpha)
        return ProductCandidate.measured(
            copies,
            prompt,
            self.bench.alpha,
            product=product,
            phase=self.bench.phase,
            evals_per_sample=evals,
            nearest=float(similarities.quantile(0.95)),
            taught=None if lost else self.taught(product.guidance),
            alignment=None if scores is None else scores.estimate(),
            pair_alignment=scores,
        )

    def taught(self, rule: Guidance) -> Taught | None:
        """What is left of what was taught, net of copies."""
        lessons = self.bench.lessons
        if lessons is None or self.lesson_trial is None:
            return None
        images = self.model.decode(self.lesson_trial.sample(rule)[0])
        return lessons.ruler.measure(images, lessons.texts, self.bench.guard.is_copy(images))

    def _alignment(self, images: Tensor) -> PairScores | None:
        guard, prompt = self.bench.guard, self.bench.pairs.prompt
        if guard.score_alignment is None:
            return None
        texts = [guard.training.captions[k] for k in prompt.tolist()]
        return PairScores(guard.score_alignment(images, texts), prompt)
