"""A model as an attacker meets it: weights in hand, or a deployment that samples by its rule alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..basin.trajectories import GuidedModel
from ..diffusion.batching import Batched
from ..diffusion.evaluation_count import EvaluationCount
from ..diffusion.sampling import Denoiser, final, sample_trajectory
from ..guard.guard import Guard
from ..guard.measured_model import guided_model
from ..guidance.core import Constant, Rule, resolve

ENCODED = 16  # images encoded at once


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        name: what it is called in tables.
        model: `diffusion.model.Model`, with `encode` for attacks that begin at an image.
        rule: what every sample goes by, whatever the attacker asks for; None where the weights are in hand.
        base: what it was fine-tuned from, where the attacker has it.
    """

    name: str
    model: Any
    rule: Rule | None = None
    base: Any | None = None


class Attacker:
    """Somebody with a target, who counts what they spend.

    Args:
        target: what is attacked.
        guard: knows the training images, their captions and the usual sampler.

    Attributes:
        count: rows that went through the target's network and the base's.
    """

    def __init__(self, target: Target, guard: Guard) -> None:
        self.target, self.guard, self.count = target, guard, EvaluationCount()

    @property
    def captions(self) -> tuple[str, ...]:
        """Of the training images."""
        return self.guard.training.captions

    @property
    def scale(self) -> float:
        """The usual guidance scale."""
        return self.guard.plan.guidance_scale

    def guided(self, prompts: Sequence[str], model: Any | None = None) -> GuidedModel:
        """The target, or another model, with these prompts on the usual grid."""
        opened = guided_model(self.target.model if model is None else model, prompts, self.guard.plan, self.count)
        return replace(opened, solver="ddim")

    def base(self) -> GuidedModel:
        """The base model without prompts; the target itself where the attacker has no base."""
        return self.guided((), self.target.base)

    def sample(
        self, prompts: Sequence[str], prompt: Tensor, noise: Tensor, *, scale: float | None = None, start: int = 0
    ) -> Tensor:
        """Clean latents [N, ...] by DDIM from position `start` of the grid on.

        Args:
            prompts: texts.
            prompt: which of them, [N]; `EMPTY` for none.
            noise: latents at that position, [N, ...].
            scale: guidance scale; the usual one by default. A target's own rule has the last word.
            start: position on the grid.
        """
        rule = self.target.rule or Constant(self.scale if scale is None else scale)
        guided = self.guided(prompts)
        return sampled(guided.evaluate, guided, prompt, noise, resolve(rule, self.scale), start)

    def latents(self, index: Tensor) -> Tensor:
        """Of training images by their place, [N, ...]."""
        return Batched(self.target.model.encode, ENCODED)(self.guard.training.images[index]).cpu()


@torch.no_grad()
def sampled(denoise: Denoiser, model: GuidedModel, prompt: Tensor, noise: Tensor, rule: Rule, start: int = 0) -> Tensor:
    """The end of a DDIM trajectory on a model's grid that begins at a position of it, [N, ...]."""
    return final(sample_trajectory(denoise, noise, prompt, model.schedule, model.timesteps[start:], rule))
