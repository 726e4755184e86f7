"""What was taught, as a calibration measures it: on the risk's own samples to choose by, on held-out prompts to tell.

The samples of training captions that the risk takes anyway choose the product, so choosing costs no sample. What is
told of the products that matter is measured on held-out prompts, with noise that nothing was chosen by. Samples of the
base model and the truth are shared by all that is held against them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import Pairs
from ..core import seeds as seed_table
from ..core.spread import spread
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.model import Model
from ..guard.caption_groups import caption_groups
from ..guard.control_prompts import recombined_prompts
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from ..guard.taught_ledger import taught_prompts, through_vae, true_images
from ..guard.training_set import TrainingSet
from ..similarity.feature_sets import FeatureSet
from ..similarity.taught import Taught, TaughtRuler, measure_shared
from .cost import COMPARED, TOLD
from .sample_archive import SampleArchive
from .terms import CalibrationTerms
from .trial import calibration_pairs


@dataclass(frozen=True)
class Lessons:
    """Prompts that the base model was sampled for, and the ruler that knows those samples and the truth.

    Attributes:
        prompts: texts, each once.
        ruler: says how much of what was taught samples of them show.
        subjects: a ruler for each subject of a set of several, by its name, which knows that one's images and prompts.
    """

    prompts: tuple[str, ...]
    ruler: TaughtRuler
    subjects: Mapping[str, TaughtRuler] = field(default_factory=dict, kw_only=True)

    def measure(self, images: Tensor, prompts: Sequence[str], copies: Tensor) -> Taught | None:
        """What samples show, net of copies; None where the base model was not sampled for enough of their prompts.

        Args:
            images: [n, 3, H, W] in [0, 1].
            prompts: of each.
            copies: which are copies, [n] bool.
        """
        return measure_shared(self.ruler, images, prompts, copies)

    def measure_subjects(self, images: Tensor, prompts: Sequence[str], copies: Tensor) -> dict[str, Taught]:
        """The same of each subject of a set of several; empty where there is one."""
        results = {name: measure_shared(ruler, images, prompts, copies) for name, ruler in self.subjects.items()}
        return {name: taught for name, taught in results.items() if taught is not None}


@dataclass(frozen=True)
class HeldoutLessons(Lessons):
    """Lessons of held-out prompts, with the noise of the samples that are measured by them; the same for every product.

    Attributes:
        pairs: of the prompts with seeds that nothing is chosen by.
        choosing: the same with seeds that decide between proven products.
    """

    pairs: Pairs
    choosing: Pairs

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
def base_samples(
    guard: Guard,
    base: Model,
    prompts: Sequence[str],
    samples: int,
    count: EvaluationCount,
    archive: SampleArchive,
) -> tuple[Tensor, list[str]]:
    """What the base model draws, [samples, 3, H, W], every prompt equally often, and the prompt of each."""
    drawn = calibration_pairs(len(prompts), samples, base.latent_shape, seed_table.TAUGHT_BASE)

    def draw() -> tuple[Tensor, float]:
        return run_plain(guided_model(base, prompts, guard.plan, count), drawn).ends, 0.0

    ends, _ = archive.sample("base model", prompts, drawn, count, draw)
    return base.decode(ends), [prompts[k] for k in drawn.prompt.tolist()]


class LessonPlan:
    """Which prompts are asked what was taught, and how often, before anything is sampled.

    Args:
        guard: for the sampler's settings.
        truth: what was taught.
        terms: how many samples.
        captions: that are sampled for the risk, in that order; the base is sampled for the first of them alone.
        archive: of what was drawn.
    """

    def __init__(
        self,
        guard: Guard,
        truth: TaughtTruth,
        terms: CalibrationTerms,
        captions: Sequence[str],
        archive: SampleArchive | None = None,
    ) -> None:
        self.guard, self.truth, self.archive = guard, truth, archive or SampleArchive()
        self.captions = tuple(dict.fromkeys(captions))[: terms.search_pairs]
        self.prompts = tuple(truth.prompts[i] for i in spread(len(truth.prompts), terms.search_pairs))
        self.base_samples = _multiple(terms.search_pairs, len(self.captions))
        self.heldout_samples = _multiple(terms.taught_samples, len(self.prompts))

    @property
    def samples(self) -> int:
        """Those that are drawn for what was taught alone, at most."""
        base = 0 if self._drawn_before else self.heldout_samples
        return self.base_samples + base + (TOLD + COMPARED) * self.heldout_samples

    @property
    def _drawn_before(self) -> tuple[Tensor, Sequence[Hashable]] | None:
        """What the base model's own probe drew of these prompts and others; None where it has not."""
        drawn = self.guard.ledger.base if self.guard.ledger else None
        return drawn if drawn and set(self.prompts) <= set(drawn[1]) else None

    def caption_lessons(self, base: Model, count: EvaluationCount) -> Lessons:
        """Lessons of training captions."""
        images, captions = base_samples(self.guard, base, self.captions, self.base_samples, count, self.archive)
        ruler = self._ruler(base, self.truth.images, images, captions)
        return Lessons(self.captions, ruler, subjects=dict(self._subjects(base, images, captions)))

    def _subjects(self, base: Model, images: Tensor, captions: Sequence[str]) -> Iterator[tuple[str, TaughtRuler]]:
        training = self.guard.training
        for name, members in caption_groups(training.captions).items():
            own = {training.captions[i] for i in members}
            rows = [row for row, caption in enumerate(captions) if caption in own]
            if rows:
                asked = [captions[row] for row in rows]
                yield name, self._ruler(base, training.images[list(members)], images[rows], asked)

    def _ruler(self, base: Model, truth: Tensor, images: Tensor, prompts: Sequence[Hashable]) -> TaughtRuler:
        return TaughtRuler(through_vae(base, truth), images, prompts, self.truth.feature_sets)

    def heldout_lessons(self, base: Model, count: EvaluationCount) -> HeldoutLessons:
        """Lessons of held-out prompts, spread over those that there are."""
        samples = self.heldout_samples
        drawn = self._drawn_before or base_samples(self.guard, base, self.prompts, samples, count, self.archive)
        ruler = self._ruler(base, self.truth.images, *drawn)
        seeds = seed_table.TAUGHT_HELDOUT, seed_table.TAUGHT_CHOICE
        pairs = (calibration_pairs(len(self.prompts), samples, base.latent_shape, first) for first in seeds)
        return HeldoutLessons(self.prompts, ruler, *pairs)


def _multiple(least: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `least`.

    Example:
        >>> _multiple(16, 24), _multiple(40, 16)
        (24, 48)
    """
    return unit * -(-least // unit)
