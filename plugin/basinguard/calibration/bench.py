"""What the products of one phase are measured on: the same captions and noise for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..basin.trajectories import Pairs
from ..core.progress import say
from ..diffusion.evaluation_count import EvaluationCount
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from .candidate import PairScores, Phase, Product, ProductCandidate
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
        pairs: training captions with seeds; their samples show the risk, and what is left of what was taught.
        lessons: of training captions; None where what was taught cannot be measured.
        count: of the network's evaluations, of all phases.
    """

    guard: Guard
    alpha: float
    phase: Phase
    pairs: Pairs
    lessons: Lessons | None = None
    count: EvaluationCount = field(default_factory=EvaluationCount)

    @property
    def texts(self) -> list[str]:
        """The caption of each pair."""
        return [self.guard.training.captions[k] for k in self.pairs.prompt.tolist()]

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
        self.trial = trial_of(opened, bench.guard, bench.guard.training.captions, bench.pairs, bench.count)

    def measure(self, product: Product) -> ProductCandidate:
        """What a product copies, and what it keeps."""
        guard, prompt, lessons = self.bench.guard, self.bench.pairs.prompt, self.bench.lessons
        latents, evals = self.trial.sample(product.guidance)
        images, texts = self.model.decode(latents), self.bench.texts
        matches, scores = guard.matches(images), self._alignment(images)
        similarities = torch.tensor([match.similarity for match in matches])
        copies = guard.copy_detector.copied(matches)
        return ProductCandidate.measured(
            copies,
            prompt,
            self.bench.alpha,
            product=product,
            phase=self.bench.phase,
            evals_per_sample=evals,
            nearest=float(similarities.quantile(0.95)),
            taught=None if lessons is None else lessons.measure(images, texts, copies),
            subjects={} if lessons is None else lessons.measure_subjects(images, texts, copies),
            alignment=None if scores is None else scores.estimate(),
            pair_alignment=scores,
        )

    def _alignment(self, images: Tensor) -> PairScores | None:
        score = self.bench.guard.score_alignment
        return None if score is None else PairScores(score(images, self.bench.texts), self.bench.pairs.prompt)


def trial_of(opened: OpenWeights, guard: Guard, prompts: Sequence[str], pairs: Pairs, count: EvaluationCount) -> Trial:
    """A model on pairs of these prompts, sampled as the guard samples."""
    anchored = None if opened.anchored is None else opened.anchored.denoiser(prompts)
    return Trial(guided_model(opened.model, prompts, guard.plan, count), pairs, anchored)
