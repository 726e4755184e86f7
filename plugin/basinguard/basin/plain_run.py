"""Plain CFG from the first timestep: what every pair gives without any protection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .early_decision import Anchors
from .trajectories import GuidedModel, Pairs, run_branch


@dataclass(frozen=True)
class PlainRun:
    """Plain CFG, run to the end.

    Attributes:
        ends: clean latents, [N, ...].
        trail: distance of the predicted clean latents from the own training image at every evaluation, [K, N]; None
            where no anchors were given.
    """

    ends: Tensor
    trail: Tensor | None = None


def run_plain(model: GuidedModel, pairs: Pairs, anchors: Anchors | None = None) -> PlainRun:
    """Samples every pair with plain CFG; `anchors` are the training images' latents."""
    begin, state = torch.zeros_like(pairs.prompt), model.path.begin(pairs.noise)
    if anchors is None:
        return PlainRun(run_branch(model, state, pairs.prompt, begin))
    trail = torch.zeros(len(model.path.nodes), len(pairs))

    def measure(rows: Tensor, index: Tensor, denoised: Tensor) -> Tensor:
        trail[index, rows] = anchors.distance(denoised, pairs.prompt[rows])
        return torch.zeros_like(rows, dtype=torch.bool)

    return PlainRun(run_branch(model, state, pairs.prompt, begin, measure), trail)
