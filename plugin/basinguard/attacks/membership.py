"""Was this image in the training set? Several statistics beside each other, with what it takes to believe them.

Each statistic is larger for members. Beside the paper's (conditional gap, loss) stand ours (critical scale, gap), each
as it is, divided by how much there is in the image, and less what the base model says of the same image, which a
serious attacker knows too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ..basin.critical_scale import critical_scale
from ..basin.gap import pair_gaps
from ..basin.trajectories import GuidedModel
from ..core import seeds as seed_table
from ..core.estimate import Estimate
from ..core.schema import Schema
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
LOSS, GAP, BLEND = "loss", "conditional gap", "conditional gap and loss (CLiD)"
PER_BYTE, OVER_BASE = "{} / compressed size", "{}, less the base model's"


class MembershipRow(Schema):
    """One statistic.

    Attributes:
        statistic: its name.
        auc: chance that a member scores above a held-out image.
        hits: members found at 1 % false positives; None where there are too few held-out images to tell.
        false: false positives at that threshold, with their interval.
        missing: why there is no headline, and how many held-out images it takes; "" where there is one.
    """

    statistic: Annotated[str, Field(max_length=100)]
    auc: Estimate
    hits: Estimate | None = None
    false: Estimate | None = None
    missing: Annotated[str, Field(max_length=300)] = ""


@dataclass(frozen=True)
class MembershipQuery:
    """Images of unknown membership, with their captions.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        captions: one for each.
    """

    images: Tensor
    captions: tuple[str, ...]


def membership(
    model: Any, guard: Guard, base: Any | None = None, plan: LossPlan = PLAN
) -> tuple[tuple[MembershipRow, ...], int]:
    """Every statistic on the training and the held-out images of a guard, and the network evaluations it took.

    Args:
        model: under attack; `Model` with `encode`.
        guard: knows both groups.
        base: what it was fine-tuned from, where the attacker has it.
        plan: of the loss.

    Raises:
        ValueError: no held-out images.
    """
    training = guard.training
    require_controls(training)
    assert training.heldout_images is not None
    both = MembershipQuery(
        torch.cat([training.images, training.heldout_images]), (*training.captions, *training.heldout)
    )
    count = EvaluationCount()
    scores = member_scores(model, guard, both, plan, count)
    columns = variants(scores, compressed_size(both.images))
    if base is not None:
        of_base = member_scores(base, guard, both, plan, count)
        above = {name: values - of_base[name] for name, values in scores.items()}
        columns |= {OVER_BASE.format(name): values for name, values in with_blend(above).items()}
    members = len(training.images)
    rows = (membership_row(name, values[:members], values[members:]) for name, values in columns.items())
    return tuple(rows), count.total


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
