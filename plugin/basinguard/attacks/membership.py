"""Was this image in the training set? Several statistics beside each other, with what it takes to believe them.

Each statistic is larger for members. Beside the paper's (conditional gap, loss) stand ours (critical scale, gap), each
as it is, divided by how much there is in the image, and less what the base model says of the same image, which a
serious attacker knows too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..basin.critical_scale import STEPS, critical_scale
from ..basin.gap import pair_gaps
from ..basin.trajectories import GuidedModel
from ..core import seeds as seed_table
from ..core.attack_table import TargetName
from ..core.membership_table import MembershipRow, MembershipTable
from ..core.stats import auc_interval
from ..diffusion.batching import Batched
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.sampling import EMPTY
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from ..guard.training_set import TrainingSet
from .compressed_size import compressed_size
from .conditional_gap import blended, conditional_gap, reduced_captions
from .denoising_loss import PLAN, LossPlan, denoising_loss
from .operating_point import controls_needed, operating_point

SHARE = 0.01  # of false positives, in the headline
ENCODED = 16  # images encoded at once
RESOLUTION = 32  # timesteps that a critical scale may be left open by: 3 % of the range, at half the price
GAP_SEEDS = 4
REDUCED = 4  # captions that an image's own is reduced to
GAP_EVALUATIONS = 2 * GAP_SEEDS
SCALE_EVALUATIONS = 2 * STEPS * math.ceil(math.log2(1000 / RESOLUTION))  # with the caption and without, by bisection
LOSS, GAP, BLEND = "loss", "conditional gap", "conditional gap and loss (CLiD)"
PER_BYTE, OVER_BASE = "{} / compressed size", "{}, less the base model's"


@dataclass(frozen=True)
class MembershipQuery:
    """Images of unknown membership, with their captions.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        captions: one for each.
    """

    images: Tensor
    captions: tuple[str, ...]


class MembershipTest:
    """Every statistic on the training and the held-out images of a guard.

    Args:
        guard: knows both groups.
        base: what models were fine-tuned from, where the attacker has it; `Model` with `encode`. It is asked once.
        plan: of the loss.

    Raises:
        ValueError: no held-out images.
    """

    def __init__(self, guard: Guard, base: Any | None = None, plan: LossPlan = PLAN) -> None:
        training = guard.training
        require_controls(training)
        assert training.heldout_images is not None
        self.guard, self.base, self.plan = guard, base, plan
        self.members, self.controls = len(training.images), len(training.heldout_images)
        images = torch.cat([training.images, training.heldout_images])
        self.query = MembershipQuery(images, (*training.captions, *training.heldout))

    @cached_property
    def _of_base(self) -> tuple[dict[str, NDArray], int]:
        return self._scores(self.base)

    def _scores(self, model: Any) -> tuple[dict[str, NDArray], int]:
        count = EvaluationCount()
        return member_scores(model, self.guard, self.query, self.plan, count), count.total

    def most_evaluations(self, models: int) -> int:
        """Of the network at most, for so many models and the base."""
        each = self.plan.evaluations * (1 + REDUCED) + GAP_EVALUATIONS + SCALE_EVALUATIONS
        return each * (self.members + self.controls) * (models + (self.base is not None))

    def table(self, name: TargetName, model: Any) -> MembershipTable:
        """Every statistic on a model under attack; `Model` with `encode`."""
        scores, evaluations = self._scores(model)
        columns = variants(scores, compressed_size(self.query.images))
        if self.base is not None:
            of_base, more = self._of_base
            above = with_blend({name: values - of_base[name] for name, values in scores.items()})
            columns |= {OVER_BASE.format(name): values for name, values in above.items()}
            evaluations += more
        cut = self.members
        rows = tuple(membership_row(each, values[:cut], values[cut:]) for each, values in columns.items())
        return MembershipTable(target=name, members=cut, controls=self.controls, evaluations=evaluations, rows=rows)


def require_controls(training: TrainingSet) -> None:
    """Refuses what has nothing to compare members with.

    Raises:
        ValueError: no held-out images.
    """
    if training.heldout_images is None:
        raise ValueError(
            "membership needs held-out images, captioned and of the same kind as the training images: there are none; "
            f"give a folder of at least {controls_needed(SHARE)} with --heldout"
        )


def membership_row(statistic: str, members: NDArray, controls: NDArray) -> MembershipRow:
    """One statistic judged; no headline where the held-out images are too few for it."""
    auc = auc_interval(members, controls)
    try:
        point = operating_point(members, controls, SHARE)
    except ValueError as error:
        return MembershipRow(statistic=statistic, auc=auc, missing=str(error))
    return MembershipRow(statistic=statistic, auc=auc, hits=point.hits, false=point.false)


def variants(scores: Mapping[str, NDArray], sizes: NDArray) -> dict[str, NDArray]:
    """Every statistic as it is, and divided by how much there is in the image, which is `sizes`, [N]."""
    divided = {name: values / sizes for name, values in scores.items()}
    return with_blend(scores) | {PER_BYTE.format(name): values for name, values in with_blend(divided).items()}


def with_blend(scores: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The statistics with CLiD's blend of two of them."""
    return {**scores, BLEND: blended(scores[GAP], -scores[LOSS])}


@torch.no_grad()
def member_scores(
    model: Any, guard: Guard, pictures: MembershipQuery, plan: LossPlan, count: EvaluationCount
) -> dict[str, NDArray]:
    """Each statistic of each image, [N]; larger for members."""
    texts = pictures.captions
    reduced = [reduced_captions(text) for text in texts]
    prompts = [text for text in dict.fromkeys([*texts, *(part for parts in reduced for part in parts)]) if text]
    guided = guided_model(model, prompts, guard.plan, count)
    latents = Batched(model.encode, ENCODED)(pictures.images).cpu()
    own = _rows(texts, prompts)
    loss = denoising_loss(guided, latents, own, plan)
    columns = [denoising_loss(guided, latents, _rows(column, prompts), plan) for column in zip(*reduced, strict=True)]
    gap = conditional_gap(torch.stack(columns, 1), loss)
    scales = critical_scale(guided, latents, own, resolution=RESOLUTION)
    return {
        LOSS: -loss.double().numpy(),
        GAP: gap,
        "critical scale": scales.with_caption.double().numpy(),
        "critical scale, caption's effect": scales.caption_effect.double().numpy(),
        "gap": _gaps(guided, own, model.latent_shape),
    }


def _rows(texts: Sequence[str], prompts: Sequence[str]) -> Tensor:
    place = {text: row for row, text in enumerate(prompts)} | {"": EMPTY}
    return torch.tensor([place[text] for text in texts])


def _gaps(guided: GuidedModel, prompt: Tensor, shape: Sequence[int]) -> NDArray:
    """Gap of each caption at the noisiest timestep, mean over a few noises, [N]; it looks at no image."""
    seeds = range(seed_table.MEMBERSHIP, seed_table.MEMBERSHIP + GAP_SEEDS)
    gaps = [pair_gaps(guided, prompt, torch.full_like(prompt, seed), shape) for seed in seeds]
    return np.asarray(torch.stack(gaps).mean(0).double())
