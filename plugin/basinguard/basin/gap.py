"""The cheapest early warning: how strongly every caption pulls at the noisiest timestep, one evaluation each.

On its own the gap says little (captions differ), so it is compared twice: with the base model on the same noise, and
with captions the model was never trained on (`heldout_contrast`).

Source: Wen et al., arXiv 2407.21720, eq. 4, divided by sqrt(numel) and in epsilon space; both comparisons are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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


def pair_gaps(model: GuidedModel, prompt: Tensor, seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Gap of every caption on the noise of its own seed, [N].

    Rows are taken a few hundred at a time, so memory does not grow with the number of captions.

    Args:
        model: with the captions.
        prompt: caption of each row, [N].
        seed: of each row, [N].
        shape: of one sample's latents.
    """
    parts = []
    for rows in torch.arange(len(prompt)).split(4 * model.chunk):
        own, row = seed[rows].unique(return_inverse=True)
        parts.append(top_gap(model, Pairs(prompt[rows], seed[rows], draw_noise(own.tolist(), shape)[row])))
    return torch.cat(parts)
