"""A rule for the prompts that pull, plain CFG for the others: told apart by their first gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .core import Rule, resolved

NEAR = 10  # timesteps; over that many near t = T the gap of a v-model changes by less than a tenth


@dataclass(frozen=True)
class Triage(Rule):
    """Plain CFG for prompts whose first gap is at most `threshold`; `rule` for the others.

    The first gap that is not zero decides: a model with zero terminal signal-to-noise ratio has none at t = T.

    Attributes:
        rule: for prompts that pull.
        threshold: root-mean-square gap in epsilon, as `calibration.prompt_triage` finds it for this model.
        after: scale of harmless prompts; None = the caller's own guidance scale.
        timestep: where the threshold was calibrated. A gap that is read further than `NEAR` from there says nothing
            of the threshold, and raises a ValueError; None = anywhere.

    Source: Wen et al., arXiv 2407.21720, section 4 (first-step magnitude); arXiv 2411.16738 names the need as its
    first limitation.
    """

    rule: Rule
    threshold: float
    after: float | None = None
    timestep: float | None = None

    reads_gap = True

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"Triage(threshold={self.threshold}): expected a gap above 0")

    def init(self, batch: int) -> tuple[Any, Tensor]:
        """The inner rule's state, and every sample's first gap [B], 0 while there is none."""
        return self.rule.init(batch), torch.zeros(batch)

    def scale(self, timestep: Tensor, gap: Tensor | None, state: tuple[Any, Tensor]) -> tuple[Tensor, Any]:
        """The inner rule's scale for samples that pull, or were not judged yet."""
        if gap is None:
            raise ValueError("Triage needs the gap, but only one branch was evaluated")
        inner, first = state[0], state[1].to(gap.device)
        self._require_near(timestep, (first == 0) & (gap > 0))
        first = torch.where(first > 0, first, gap.float())
        scale, inner = self.rule.scale(timestep, gap, inner)
        harmless = (first > 0) & (first <= self.threshold)
        return torch.where(harmless, resolved(self.after), scale.to(gap.device)), (inner, first)

    def _require_near(self, timestep: Tensor, judged: Tensor) -> None:
        if self.timestep is None or not bool(judged.any()):
            return
        now = float(timestep.flatten()[0])
        if abs(now - self.timestep) > NEAR:
            raise ValueError(
                f"triage was calibrated at timestep {self.timestep:g}, this sampler shows its first gap at {now:g}: "
                "take the number of steps and the timestep_spacing of the calibration, or leave triage off"
            )
