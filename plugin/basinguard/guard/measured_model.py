"""A model with what a probe measures it with: samples of plain CFG, their matches, latents of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..basin.early_decision import Anchors
from ..basin.exit_search import ExitSearch
from ..basin.plain_run import PlainRun, run_plain
from ..basin.trajectories import GuidedModel, Pairs
from ..core import stats
from ..core.estimate import Estimate
from ..core.metric import Match
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.model import Model
from ..similarity.copy_detector import CopyDetector
from .critical_scale_stage import ENCODED
from .plan import ProbePlan
from .taught_ledger import TaughtLedger
from .training_set import TrainingSet

ScoreAlignment = Callable[[Tensor, Sequence[str]], Tensor]


def guided_model(
    model: Model, prompts: Sequence[str], plan: ProbePlan, count: EvaluationCount | None = None
) -> GuidedModel:
    """The model with these prompts, on the plan's grid."""
    grid, denoise = model.schedule.grid(plan.timesteps), model.denoiser(prompts)
    count = EvaluationCount() if count is None else count
    return GuidedModel(denoise, model.schedule, grid, plan.guidance_scale, plan.chunk, plan.solver, count)


@dataclass(frozen=True)
class Instruments:
    """What probes measure with and on; the same at every epoch.

    Attributes:
        copy_detector: says what reproduces a training image.
        training: images and captions.
        plan: sampler, scale and alpha.
        score_alignment: agreement of images and captions.
        ledger: what was taught is measured with; None where it is not.
    """

    copy_detector: CopyDetector
    training: TrainingSet
    plan: ProbePlan
    score_alignment: ScoreAlignment | None = None
    ledger: TaughtLedger | None = None


@dataclass(frozen=True)
class Drawn:
    """What plain CFG gave for some captions.

    Attributes:
        captions: their texts; what `pairs.prompt` counts in.
        model, pairs: the model with these captions, and the trajectories.
        anchors: latents of the training images, where the model can encode and exits are searched.
        plain: the trajectories.
        images: their ends, [N, 3, H, W].
        matches: the nearest training image of each.
    """

    captions: Sequence[str]
    model: GuidedModel
    pairs: Pairs
    anchors: Anchors | None
    plain: PlainRun
    images: Tensor
    matches: list[Match]

    @property
    def clusters(self) -> list[int]:
        """The caption of each sample, by the first place in `captions` that says the same."""
        words = [" ".join(text.lower().split()) for text in self.texts]
        return [words.index(text) for text in words]

    @property
    def texts(self) -> list[str]:
        """The caption of each sample."""
        return [self.captions[k] for k in self.pairs.prompt.tolist()]

    @property
    def similarity_p95(self) -> Estimate:
        """Similarity of the samples to the nearest training image, 95th percentile."""
        return stats.cluster_bootstrap([match.similarity for match in self.matches], self.clusters, stats.p95)


class MeasuredModel:
    """A model with what it is measured with.

    Args:
        instruments: the same at every epoch.
        model: what is measured.
        count: of the rows that go through the network.
    """

    def __init__(self, instruments: Instruments, model: Model, count: EvaluationCount) -> None:
        self.instruments, self.model, self.count = instruments, model, count

    def guided(self, prompts: Sequence[str], timesteps: int = 0) -> GuidedModel:
        """The model with these prompts, on a grid of so many timesteps; the plan's when 0."""
        plan = self.instruments.plan
        return guided_model(self.model, prompts, replace(plan, timesteps=timesteps or plan.timesteps), self.count)

    def draw(self, captions: Sequence[str], model: GuidedModel, pairs: Pairs, anchors: Anchors | None = None) -> Drawn:
        """Plain CFG of these pairs, decoded and matched."""
        plain = run_plain(model, pairs, anchors)
        images = self.model.decode(plain.ends)
        return Drawn(captions, model, pairs, anchors, plain, images, self.instruments.copy_detector.matches(images))

    def anchors(self, captions: Sequence[str]) -> Anchors | None:
        """Latents of every image that counts as a sampled caption's own, and of their mirror images."""
        if not hasattr(self.model, "encode"):
            return None
        detector = self.instruments.copy_detector
        own = [(i, k) for k, text in enumerate(captions) for i in sorted(detector.own_images(text))]
        pixels = self.instruments.training.images[[i for i, _ in own]]
        latents = torch.cat([self.model.encode(part) for part in torch.cat([pixels, pixels.flip(-1)]).split(ENCODED)])
        return Anchors(latents.cpu(), torch.tensor([k for _, k in own] * 2))

    def matches(self, latents: Tensor) -> list[Match]:
        """Matches of latents; rows that are the same are decoded once."""
        unique, row = torch.unique(latents, dim=0, return_inverse=True)
        matches = self.instruments.copy_detector.matches(self.model.decode(unique))
        return [matches[k] for k in row.tolist()]

    def alignment(self, drawn: Drawn) -> Estimate | None:
        """Agreement of samples and captions, where it can be measured."""
        score = self.instruments.score_alignment
        return None if score is None else stats.cluster_bootstrap(score(drawn.images, drawn.texts), drawn.clusters)

    def risk_uncond(self, search: ExitSearch) -> Estimate:
        """Does the empty prompt alone reproduce training images? Then guidance at scale 0 cannot help."""
        ends = search.model.path.latents(search.trunk.states[-1])
        return stats.rate(self.instruments.copy_detector.is_copy(self.model.decode(ends)), torch.arange(len(ends)))


def uncond_warning(risk_uncond: Estimate | None, alpha: float) -> str:
    """What an empty prompt that copies means for the rules; "" where it does not."""
    if risk_uncond is None or risk_uncond.value <= alpha:
        return ""
    return (
        f"the empty prompt itself reproduces training images (share {risk_uncond}): guidance at scale 0 before a "
        "transition cannot escape them. Train with keep_unconditional=1, without caption dropout, or take the "
        "unconditional branch from the base model (anchor)"
    )
