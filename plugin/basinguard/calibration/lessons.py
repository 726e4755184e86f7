"""What was taught, as a calibration measures it: held-out prompts with seeds for each phase, and one ruler for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import Pairs
from ..core import seeds as seed_table
from ..core.spread import spread
from ..diffusion.evaluation_count import EvaluationCount
from ..guard.control_prompts import recombined_prompts
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from ..guard.taught_ledger import taught_prompts, through_vae, true_images
from ..guard.training_set import TrainingSet
from ..similarity.feature_sets import FeatureSet
from ..similarity.taught import TaughtRuler
from .terms import CalibrationTerms
from .trial import calibration_pairs
from .weights import Weights

SEEDS = {"search": seed_table.TAUGHT_SEARCH, "proof": seed_table.TAUGHT_PROOF, "anew": seed_table.TAUGHT_ANEW}


@dataclass(frozen=True)
class Lessons:
    """Held-out prompts with seeds, and the ruler that says how much of what was taught their samples show.

    Attributes:
        prompts: texts.
        pairs: of them with seeds.
        ruler: knows the truth and the base model's samples.
    """

    prompts: tuple[str, ...]
    pairs: Pairs
    ruler: TaughtRuler

    @property
    def texts(self) -> list[str]:
        """The prompt of each sample."""
        return [self.prompts[k] for k in self.pairs.prompt.tolist()]


@dataclass(frozen=True)
class TaughtTruth:
    """What was taught.

    Attributes:
        images: true images, [N, 3, H, W] in [0, 1], as files: the VAE is gone through here.
        prompts: held-out ones.
        feature_sets: what the images are looked at with.
    """

    images: Tensor
    prompts: tuple[str, ...]
    feature_sets: tuple[FeatureSet, ...]


def truth_of(training: TrainingSet, feature_sets: Sequence[FeatureSet]) -> TaughtTruth:
    """What a training set teaches, and the prompts that show it: recombined captions where none were given."""
    prompts = taught_prompts(training) or recombined_prompts(training.captions)
    return TaughtTruth(true_images(training), prompts, tuple(feature_sets))


@torch.no_grad()
def lessons_for(
    guard: Guard, weights: Weights, truth: TaughtTruth | None, terms: CalibrationTerms, count: EvaluationCount
) -> Mapping[str, Lessons]:
    """The lessons of each phase, with one ruler; none where truth or base model are missing.

    At most `terms.search_pairs` prompts, spread over those that there are; the base model is sampled once.
    """
    if truth is None or not weights.graded or not truth.prompts:
        return {}
    prompts = tuple(truth.prompts[i] for i in spread(len(truth.prompts), terms.search_pairs))
    with weights.at(weights.epochs[-1], 0.0) as opened:
        model, shape = opened.model, opened.model.latent_shape
        drawn = calibration_pairs(len(prompts), terms.taught_samples, shape, seed_table.TAUGHT_BASE)
        ends = run_plain(guided_model(model, prompts, guard.plan, count), drawn).ends
        asked = [prompts[k] for k in drawn.prompt.tolist()]
        ruler = TaughtRuler(through_vae(model, truth.images), model.decode(ends), asked, truth.feature_sets)
    samples = {"search": terms.search_pairs, "proof": terms.taught_samples, "anew": terms.taught_samples}
    pairs = {name: calibration_pairs(len(prompts), n, shape, SEEDS[name]) for name, n in samples.items()}
    return {name: Lessons(prompts, pairs[name], ruler) for name in samples}
