"""What the products of one phase are measured on: the same captions and noise for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from ..basin.trajectories import Pairs
from ..core.metric import Match
from ..core.progress import say
from ..core.recorded_weights import RecordedSchedule
from ..diffusion.evaluation_count import EvaluationCount
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from .candidate import PairScores, Phase, Product, ProductCandidate
from .design import Design
from .lessons import Lessons
from .sample_archive import SampleArchive
from .trial import Prefixes, Trial
from .weights import OpenWeights, Weights, product_weights

Held = tuple[int | None, float, RecordedSchedule | None, str]  # which weights: epoch, strength, by timestep, filter


@dataclass(frozen=True)
class Bench:
    """What the products of one phase are measured on.

    Attributes:
        guard: knows the training images, and scores captions.
        alpha: the risk that may not be exceeded.
        phase: of the candidates.
        pairs: training captions with seeds; their samples show the risk, and what is left of what was taught.
        design: how many of the pairs a product is measured on.
        lessons: of training captions; None where what was taught cannot be measured.
        count: of the network's evaluations, of all phases.
        archive: of what was drawn.
    """

    guard: Guard
    alpha: float
    phase: Phase
    pairs: Pairs
    design: Design
    lessons: Lessons | None = None
    count: EvaluationCount = field(default_factory=EvaluationCount)
    archive: SampleArchive = field(default_factory=SampleArchive)
    _prefixes: dict[Held, dict[int, Prefixes]] = field(default_factory=dict, repr=False)

    def measure(self, weights: Weights, products: Iterable[Product], delta: float = 1.0) -> Iterator[ProductCandidate]:
        """Each product, in order; neighbours with the same weights share what their samples have in common.

        Args:
            weights: where they come from.
            products: what is measured.
            delta: error of the test that a sequential design decides; 1 stops after one round.
        """
        for held, same in groupby(products, key=_held):
            group = list(same)
            with product_weights(weights, group[0]) as opened:
                model = BenchedModel(self, opened, self._prefixes_of(held))
                for product in group:
                    candidate = model.measure(product, delta)
                    say(f"{self.phase}: {candidate}")
                    yield candidate

    def _prefixes_of(self, weights: Held) -> dict[int, Prefixes]:
        """What was sampled of these weights before guidance came on, by round; that of others is forgotten."""
        if weights not in self._prefixes:
            self._prefixes.clear()
        return self._prefixes.setdefault(weights, {})


def _held(product: Product) -> Held:
    return product.epoch, product.strength, product.strength_schedule, product.update_filter


@dataclass(frozen=True)
class Round:
    """Samples of one round: the images, what they are nearest to, which are copies, and the evaluations of each."""

    images: Tensor
    matches: list[Match]
    copies: Tensor
    evals: float


class BenchedModel:
    """A model with the weights of a product, on a bench."""

    def __init__(self, bench: Bench, opened: OpenWeights, prefixes: dict[int, Prefixes]) -> None:
        self.bench, self.model, self.prefixes = bench, opened.model, prefixes
        self.trial = trial_of(opened, bench.guard, bench.guard.training.captions, bench.pairs, bench.count)

    def measure(self, product: Product, delta: float) -> ProductCandidate:
        """What a product copies, and what it keeps."""
        bench, lessons = self.bench, self.bench.lessons
        rounds: list[Round] = []

        def draw(rows: Tensor) -> Tensor:
            rounds.append(self._round(product, rows, number=len(rounds)))
            return rounds[-1].copies

        rows = bench.design.run(draw, bench.pairs.prompt, bench.alpha, delta)
        images, similarities = torch.cat([r.images for r in rounds]), [m.similarity for r in rounds for m in r.matches]
        prompt = bench.pairs.prompt[rows]
        texts = [bench.guard.training.captions[k] for k in prompt.tolist()]
        scores, copies = self._alignment(images, texts, prompt), torch.cat([r.copies for r in rounds])
        return ProductCandidate.measured(
            copies,
            prompt,
            bench.alpha,
            bench.design,
            product=product,
            phase=bench.phase,
            evals_per_sample=sum(r.evals * len(r.images) for r in rounds) / len(rows),
            nearest=float(torch.tensor(similarities).quantile(0.95)),
            similarities=tuple(similarities),
            taught=None if lessons is None else lessons.measure(images, texts, copies),
            subjects={} if lessons is None else lessons.measure_subjects(images, texts, copies),
            alignment=None if scores is None else scores.estimate(),
            pair_alignment=scores,
        )

    def _round(self, product: Product, rows: Tensor, number: int) -> Round:
        guard, prefixes = self.bench.guard, self.prefixes.setdefault(number, {})
        trial = replace(self.trial, pairs=self.bench.pairs[rows], prefixes=prefixes)
        latents, evals = archived_sample(self.bench.archive, product, trial, guard.training.captions, self.bench.count)
        images = self.model.decode(latents)
        matches = guard.matches(images)
        return Round(images, matches, guard.copy_detector.copied(matches), evals)

    def _alignment(self, images: Tensor, texts: Sequence[str], prompt: Tensor) -> PairScores | None:
        score = self.bench.guard.score_alignment
        return None if score is None else PairScores(score(images, texts), prompt)


def archived_sample(
    archive: SampleArchive, product: Product, trial: Trial, texts: Sequence[str], count: EvaluationCount
) -> tuple[Tensor, float]:
    """A product's samples on the pairs of a trial, as `Trial.sample` gives them; from the archive where it has them."""
    return archive.sample(repr(product), texts, trial.pairs, count, lambda: trial.sample(product.guidance))


def trial_of(opened: OpenWeights, guard: Guard, prompts: Sequence[str], pairs: Pairs, count: EvaluationCount) -> Trial:
    """A model on pairs of these prompts, sampled as the guard samples."""
    anchored = None if opened.anchored is None else opened.anchored.denoiser(prompts)
    return Trial(guided_model(opened.model, prompts, guard.plan, count), pairs, anchored)
