"""Prompt editing for A1111 and Forge.

While the prompt is still empty both predictions are the same, so any cfg is scale 0. Another scale s above the
transition takes two prompts that are added up by AND, with the CFG scale w fixed: the first is there above the
transition alone and weighs s / w, the second from the transition on; w (s / w) (c - u) = s (c - u).

For Stable Diffusion XL neither works: its empty negative prompt is zeros there, as in diffusers, and the empty part of
an edit is the text of an empty prompt, so the two predictions differ.
"""

from __future__ import annotations

from ..core.record import Record
from .model_kind import STABLE_DIFFUSION, ModelKind
from .sampler_grids import is_plain, require_two_scales, steps_before

SCHEDULES = {
    "Simple": "simple",
    "Uniform": "normal",
    "SGM Uniform": "sgm_uniform",
    "DDIM": "ddim_uniform",
    "Karras": "karras",
    "Exponential": "exponential",
    "KL Optimal": "kl_optimal",
}
FEWEST = 2  # guarded steps: an edit at step 0 is dropped there, which would be plain CFG
XL_EMPTY = (
    "prompt editing cannot follow a rule of Stable Diffusion XL: its empty negative prompt is zeros there, and the "
    "empty part of an edit is not"
)
ONE_STRENGTH = (
    "A1111 and Forge read the strength of a LoRA once, before the first step, so it cannot depend on the timestep there"
)
SAFE = 0.05  # Forge divides by the sum of the weights


def a1111_prompt(
    record: Record,
    prompt: str,
    *,
    steps: int | None = None,
    schedule: str = "Simple",
    lora: str | None = None,
    kind: ModelKind = STABLE_DIFFUSION,
) -> str:
    """What to type as prompt in A1111 or Forge, with an empty negative prompt.

    Example: `[:a red circle:0.48]` keeps the prompt empty in the first ten of twenty steps. The fraction, unlike a
    number of steps, is right for samplers of second order as well, which count each of their two evaluations.

    Args:
        record: the calibration; a scale other than 0 above its transition holds at the CFG scale `record.scale` alone.
        prompt: what to draw.
        steps: the user's own; defaults to what was measured.
        schedule: A1111's "Schedule type"; "Automatic" depends on the sampler, so it is not accepted.
        lora: name of a LoRA file; its tag stays outside the brackets, so that it acts in every step.
        kind: of the model.

    Raises:
        ValueError: a strength by timestep, a rule that prompt editing cannot express, any rule of XL, fewer than two
            guarded steps, a schedule that is unknown, or a prompt that has A1111's own syntax in it.

    Source: A1111, modules/prompt_parser.py: the part before the colon holds while `step <= int(share * steps)`, steps
    from 0; AND and its weights in `get_multicond_prompt_list`; Forge's `sampling_function_inner`.
    """
    rule, steps = record.guidance, steps or record.sampler.timesteps
    if record.product.strength_schedule:
        raise ValueError(ONE_STRENGTH)
    require_two_scales(rule)
    if rule.refine > 1:
        raise ValueError(f"prompt editing has one grid; this record refines it {rule.refine} times at the transition")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule type {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if any(mark in prompt for mark in ":|[]<>") or "AND" in prompt.split():
        raise ValueError(f"{prompt!r}: the characters : | [ ] < > and the word AND mean something else there")
    if is_plain(rule):
        edited = prompt
    elif kind.xl:
        raise ValueError(XL_EMPTY)
    else:
        edited = _edited(prompt, steps_before(rule, SCHEDULES[schedule], steps), steps, _weight(record))
    return f"{edited} <lora:{lora}:1>" if lora else edited


def _weight(record: Record) -> float:
    """What the prompt above the transition weighs beside the CFG scale."""
    weight = record.guidance.before / record.scale if record.guidance.before else 0.0
    if abs(1 + weight) < SAFE:
        raise ValueError(
            f"scale {record.guidance.before:g} above the transition is the opposite of the CFG scale {record.scale:g}: "
            "Forge divides by the sum of both; calibrate with another scale"
        )
    return weight


def _edited(prompt: str, switch: int, steps: int, weight: float) -> str:
    if switch < FEWEST:
        raise ValueError(
            f"{switch} of {steps} steps above the transition: prompt editing ignores an edit before the second; "
            "take more steps"
        )
    share = f"{(switch - 0.4) / steps:.4f}"  # int(share * steps) = switch - 1, int(share * 2 steps) = 2 switch - 1
    late = f"[:{prompt}:{share}]"
    return f"[{prompt}::{share}] :{weight:.4g} AND {late}" if weight else late
