"""The cheapest early warning: how strongly every caption pulls at the noisiest timestep, one evaluation each.

On its own the gap says little (captions differ), so it is compared twice: with the base model on the same noise, and
with captions the model was never trained on.

Source: Wen et al., arXiv 2407.21720, eq. 4, divided by sqrt(numel) and in epsilon space; both comparisons are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import stats
from ..core.estimate import Estimate
from ..diffusion.sampling import EMPTY, draw_noise
from ..guidance.core import gap
from .trajectories import GuidedModel, Pairs


def top_gap(model: GuidedModel, pairs: Pairs) -> Tensor:
    """Gap of every pair at the noisiest timestep, [N], in epsilon units.

    The unconditional prediction is made once for each seed.
    """
    seeds, row = pairs.seed.unique(return_inverse=True)
    first = torch.stack([(row == k).nonzero()[0, 0] for k in range(len(seeds))])
    state = model.path.latents(model.path.begin(pairs.noise))
    x = torch.cat([state[first], state])
    prompt = torch.cat([torch.full_like(first, EMPTY), pairs.prompt])
    eps = model.evaluate(x, model.path.nodes[0].expand(len(x)), prompt)
    return gap(eps[: len(seeds)][row], eps[len(seeds) :])


def caption_gaps(model: GuidedModel, captions: int, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Gap of every caption on the same noises, [captions, seeds].

    Rows are taken a few hundred at a time, so memory does not grow with the number of captions.
    """
    noise, parts = draw_noise(seeds, shape), list[Tensor]()
    size = max(1, 4 * model.chunk // len(seeds))
    for some in torch.arange(captions).split(size):
        prompt = some.repeat_interleave(len(seeds))
        seed = torch.tensor(list(seeds)).repeat(len(some))
        gaps = top_gap(model, Pairs(prompt, seed, noise.repeat(len(some), *[1] * (noise.ndim - 1))))
        parts.append(gaps.reshape(len(some), len(seeds)))
    return torch.cat(parts)


@dataclass(frozen=True)
class Alarm:
    """How far the training captions have moved away from captions the model never saw.

    Attributes:
        since_base: mean rise of a training caption's measure since the base model.
        excess: that rise less the held-out captions' own; the alarm is raised when its interval lies above 0.
        auc: chance that a training caption rose more than a held-out one.
        ranking: training captions, the one that rose most first.
        rise: of each caption in that order.
    """

    since_base: Estimate
    excess: Estimate
    auc: Estimate
    ranking: tuple[int, ...]
    rise: tuple[float, ...]

    @property
    def raised(self) -> bool:
        """Whether the training captions rose more than chance explains."""
        return self.excess.low > 0


def raise_alarm(now: Tensor, base: Tensor, control: Tensor, control_base: Tensor) -> Alarm:
    """Compares a measure of every caption with the base model's, and with that of held-out captions.

    Args:
        now, base: the measure of each training caption in this model and in the base model, same noise, [N].
        control, control_base: the same of held-out captions, [M].

    Raises:
        ValueError: no held-out captions, or lists that do not belong together.
    """
    if now.shape != base.shape or control.shape != control_base.shape or not len(now) or not len(control):
        raise ValueError(
            f"{list(now.shape)} against {list(base.shape)} training and {list(control.shape)} against "
            f"{list(control_base.shape)} held-out captions; expected one value for each caption in both models"
        )
    rise, control_rise = (now - base).double(), (control - control_base).double()
    order = rise.argsort(descending=True)
    return Alarm(
        since_base=stats.cluster_bootstrap(rise, range(len(rise))),
        excess=stats.difference(rise, control_rise),
        auc=stats.auc_interval(rise, control_rise),
        ranking=tuple(order.tolist()),
        rise=tuple(rise[order].tolist()),
    )
