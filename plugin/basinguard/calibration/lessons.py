"""What was taught, as a calibration measures it: on the risk's own samples to choose by, on held-out prompts to tell.

The samples of training captions that the risk takes anyway choose the product, so choosing costs no sample. What is
told of the products that matter is measured on held-out prompts, with noise that nothing was chosen by. Samples of the
base model and the truth are shared by all that is held against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import Pairs
from ..core import seeds as seed_table
from ..core.spread import spread
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.model import Model
from ..guard.control_prompts import recombined_prompts
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from ..guard.taught_ledger import taught_prompts, through_vae, true_images
from ..guard.training_set import TrainingSet
from ..similarity.feature_sets import FeatureSet
from ..similarity.taught import Taught, TaughtRuler
from .terms import CalibrationTerms
from .trial import calibration_pairs


@dataclass(frozen=True)
class Lessons:
    """Prompts that the base model was sampled for, and the ruler that knows those samples and the truth.

    Attributes:
        prompts: texts, each once.
        ruler: says how much of what was taught samples of them show.
    """

    prompts: tuple[str, ...]
    ruler: TaughtRuler

    def measure(self, images: Tensor, prompts: Sequence[str], copies: Tensor) -> Taught | None:
        """What samples show, net of copies; None where the base model was not sampled for any of their prompts.

        Args:
            images: [n, 3, H, W] in [0, 1].
            prompts: of each.
            copies: which are copies, [n] bool.
        """
        rows = [row for row, prompt in enumerate(prompts) if prompt in self.prompts]
        if not rows:
            return None
        return self.ruler.measure(images[rows], [prompts[row] for row in rows], copies[rows])


@dataclass(frozen=True)
class HeldoutLessons(Lessons):
    """Lessons of held-out prompts, with the noise of the samples that are measured by them.

    Attributes:
        pairs: of the prompts with seeds that nothing is chosen by; the same for every product.
    """

    pairs: Pairs

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
def ruler_of(
    guard: Guard, base: Model, truth: TaughtTruth, prompts: Sequence[str], samples: int, count: EvaluationCount
) -> TaughtRuler:
    """Samples the base model and makes the ruler that others are held against.

    Args:
        guard: for the sampler's settings.
        base: the model that was fine-tuned.
        truth: what was taught.
        prompts: each once.
        samples: of all of them; every prompt equally often.
        count: of the network's evaluations.
    """
    drawn = calibration_pairs(len(prompts), samples, base.latent_shape, seed_table.TAUGHT_BASE)
    ends = run_plain(guided_model(base, prompts, guard.plan, count), drawn).ends
    asked = [prompts[k] for k in drawn.prompt.tolist()]
    return TaughtRuler(through_vae(base, truth.images), base.decode(ends), asked, truth.feature_sets)


class LessonPlan:
    """Which prompts are asked what was taught, and how often, before anything is sampled.

    Args:
        guard: for the sampler's settings.
        truth: what was taught.
        terms: how many samples.
        captions: that are sampled for the risk, in that order; of very many, the first.
    """

    def __init__(self, guard: Guard, truth: TaughtTruth, terms: CalibrationTerms, captions: Sequence[str]) -> None:
        self.guard, self.truth = guard, truth
        self.captions = tuple(dict.fromkeys(captions))[: terms.search_pairs + terms.taught_samples]
        self.prompts = tuple(truth.prompts[i] for i in spread(len(truth.prompts), terms.search_pairs))
        self.base_samples = _multiple(terms.search_pairs, len(self.captions))
        self.heldout_samples = _multiple(terms.taught_samples, len(self.prompts))

    def caption_lessons(self, base: Model, count: EvaluationCount) -> Lessons:
        """Lessons of training captions."""
        ruler = ruler_of(self.guard, base, self.truth, self.captions, self.base_samples, count)
        return Lessons(self.captions, ruler)

    def heldout_lessons(self, base: Model, count: EvaluationCount) -> HeldoutLessons:
        """Lessons of held-out prompts, spread over those that there are."""
        ruler = ruler_of(self.guard, base, self.truth, self.prompts, self.heldout_samples, count)
        pairs = calibration_pairs(len(self.prompts), self.heldout_samples, base.latent_shape, seed_table.TAUGHT_HELDOUT)
        return HeldoutLessons(self.prompts, ruler, pairs)


def _multiple(least: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `least`.

    Example:
        >>> _multiple(16, 24), _multiple(40, 16)
        (24, 48)
    """
    return unit * -(-least // unit)
