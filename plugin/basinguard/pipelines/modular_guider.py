"""A rule as a guider of Modular Diffusers: SDXL, SD3, Flux 2, Qwen-Image and whatever else takes a `guider`.

    pipe.update_components(guider=RuleGuider.for_scheduler(SwitchAt(600, after=None), pipe.scheduler))

Differs from diffusers' own guiders: the rule speaks of timesteps, not of shares of the step index; before a transition
"no guidance" may be the unconditional branch, not only the conditional one; every sample has its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from torch import Tensor

from ..guidance.core import Rule, Steering, combine, epsilon_factor, lone_branch, resolve
from ..guidance.core import gap as gap_of
from ..guidance.serialization import rule_from_dict, rule_to_dict

BRANCHES = ("pred_cond", "pred_uncond")
NOISE = ("prediction_type", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


class RuleGuider(BaseGuidance):
    """Applies a rule to each step of a modular pipeline, evaluating only the branches the rule needs.

    Args:
        rule: the rule's JSON form, see `guidance.serialization.rule_to_dict`.
        guidance_scale: the caller's own scale, what `after=None` in the rule stands for.
        guidance_rescale: as in `ClassifierFreeGuidance`; acts where both branches are evaluated.
        noise: the numbers of the model's noise schedule, for the gap in epsilon units; None for flow matching.
    """

    _input_predictions: ClassVar[list[str]] = list(BRANCHES)

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,  # diffusers takes a positional argument for a default and drops it from copies
        rule: Mapping[str, Any],
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        noise: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ):
        super().__init__(enabled=enabled)
        self.rule = resolve(rule_from_dict(rule), guidance_scale)
        self.guidance_rescale = guidance_rescale
        self._factor = epsilon_factor(None if noise is None else DDPMScheduler(**noise))
        self.guidance_scale = guidance_scale
        self._branches: tuple[str, ...] = BRANCHES
        self._forget()

    @classmethod
    def for_scheduler(cls, rule: Rule, scheduler: Any, **options: Any) -> RuleGuider:
        """A guider for `rule` that reads the gap in the units of `scheduler`'s model; `options` as in the class."""
        noise = None
        if getattr(scheduler, "alphas_cumprod", None) is not None:
            noise = {key: scheduler.config[key] for key in NOISE if key in scheduler.config}
        return cls(rule=rule_to_dict(rule), noise=noise, **options)

    @property
    def num_conditions(self) -> int:
        """How many branches the step at hand evaluates; 2 between steps, so that both prompts get encoded."""
        return len(self._branches)

    @property
    def is_conditional(self) -> bool:
        """Whether the branch being evaluated is the conditional one."""
        return self._branches[max(self._count_prepared, 1) - 1] == "pred_cond"

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Called by the pipeline before every step; step 0 starts a new trajectory."""
        super().set_state(step, num_inference_steps, timestep)
        self._branches = BRANCHES
        if step == 0:
            self._forget()

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """One batch of model inputs for each branch that the rule needs.

        Raises:
            ValueError: the pipeline prepared no negative prompt, so there is no unconditional branch.
        """
        pairs = [value for value in data.values() if isinstance(value, tuple) and value[0] is not None]
        if self._enabled and not any(pair[1] is not None for pair in pairs):
            raise ValueError("the pipeline prepared no negative prompt embeddings, so a rule has nothing to act on")
        self._branches = self._needed(len(pairs[0][0])) if self._enabled else BRANCHES[:1]
        return [self._prepare_batch(data, BRANCHES.index(branch), branch) for branch in self._branches]

    def forward(self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction."""
        self._branches = BRANCHES
        if pred_cond is None or pred_uncond is None:
            pred = pred_uncond if pred_cond is None else pred_cond
            return GuiderOutput(pred=pred, pred_cond=pred, pred_uncond=pred_uncond)
        gaps = gap_of(pred_uncond, pred_cond) * self._factor(self._now)
        pred = combine(pred_uncond, pred_cond, self._steering.decide(self._now, gaps, len(pred_cond)))
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _forget(self) -> None:
        self._steering = Steering(self.rule, lambda: self.guidance_scale, self._factor)

    @property
    def _now(self) -> float:
        return float(torch.as_tensor(self._timestep).flatten()[0])

    def _needed(self, batch: int) -> tuple[str, ...]:
        if self.rule.reads_gap:
            return BRANCHES
        lone = lone_branch(self._steering.decide(self._now, None, batch))
        return BRANCHES if lone is None else (BRANCHES[1 - lone],)
