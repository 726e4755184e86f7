"""Prompt editing for A1111 and Forge.

While the prompt is still empty both predictions are the same, so any cfg is scale 0; no other scale before the
transition can be typed there.
"""

from __future__ import annotations

from ..core.record import Record
from .sampler_grids import fits, no_schedule, steps_before

SCHEDULES = {
    "Simple": "simple",
    "Uniform": "normal",
    "SGM Uniform": "sgm_uniform",
    "DDIM": "ddim_uniform",
    "Karras": "karras",
}


def a1111_prompt(
    record: Record, prompt: str, *, steps: int | None = None, schedule: str = "Simple", lora: str | None = None
) -> str:
    """What to type as prompt in A1111 or Forge, with an empty negative prompt.

    Example: `[:a red circle:9]` keeps the prompt empty in the first ten steps, counted from 0 to 9.

    Args:
        record: the calibration.
        prompt: what to draw.
        steps: the user's own; defaults to what was measured.
        schedule: A1111's "Schedule type"; "Automatic" depends on the sampler, so it is not accepted.
        lora: name of a LoRA file; its tag stays outside the brackets, so that it acts in every step.

    Raises:
        ValueError: a rule that prompt editing cannot express, a schedule that is unknown, or a prompt that has
            A1111's own syntax in it.

    Source: A1111, modules/prompt_parser.py: the part before the colon holds while `step <= when`, steps from 0.
    """
    rule = record.guidance
    if not fits(rule):
        raise ValueError(no_schedule(rule))
    if rule.before != 0 and not rule.plain:
        raise ValueError(f"prompt editing is scale 0 before the transition; this record's is {rule.before:g}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule type {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if any(mark in prompt for mark in ":|[]<>"):
        raise ValueError(f"{prompt!r}: the characters : | [ ] < > mean something else inside prompt editing")
    switch = 0 if rule.plain else steps_before(rule, SCHEDULES[schedule], steps or record.sampler.timesteps)
    edited = f"[:{prompt}:{switch - 1}]" if switch else prompt
    return f"{edited} <lora:{lora}:1>" if lora else edited
