"""How to sample by the rule in ComfyUI and A1111, in words, for the model card."""

from __future__ import annotations

from ..core.record import Record
from .a1111 import SCHEDULES, a1111_prompt
from .layout import WORKFLOW_FILE
from .sampler_grids import fits, no_schedule, steps_before


def comfyui_text(record: Record) -> str:
    """A Markdown sentence that begins with whether it is guarded."""
    rule, steps = record.guidance, record.sampler.timesteps
    if not fits(rule):
        return f"{no_schedule(rule)}.**"
    if rule.plain:
        return f"as promised, with nothing to add.** Put this directory into `models/diffusers`; cfg {record.scale:g}."
    switch = steps_before(rule, "simple", steps)
    cfg = (
        f"cfg {rule.before:g}" if rule.before >= 0 else f"cfg {1 - rule.before:g}, positive and negative prompt swapped"
    )
    after = f"cfg {record.scale:g}"
    return (
        f"guarded, core nodes only.** Put this directory into `models/diffusers` and drop "
        f"[`{WORKFLOW_FILE}`]({WORKFLOW_FILE}) on the window: two `KSamplerAdvanced`, steps 0 to {switch} with {cfg}, "
        f"steps {switch} to {steps} with {after}. "
        "For other steps or schedulers: `basinguard export --kind comfyui`."
    )


def a1111_text(record: Record) -> str:
    """A Markdown sentence that begins with whether it is guarded."""
    rule, steps = record.guidance, record.sampler.timesteps
    if not fits(rule):
        return f"{no_schedule(rule)}.**"
    if rule.plain:
        return f"as promised, with nothing to add.** CFG scale {record.scale:g}."
    if rule.before != 0:
        return (
            f"NOT guarded.** A scale of {rule.before:g} cannot be typed there; prompt editing can only do scale 0 "
            "before the transition, which is not what this checkpoint was measured with."
        )
    rows = "\n".join(
        f"| {schedule} | `{a1111_prompt(record, 'your prompt', steps=steps, schedule=schedule)}` |"
        for schedule in SCHEDULES
    )
    return (
        f"guarded by prompt editing.** {steps} steps, empty negative prompt, any CFG scale; a `<lora:...>` tag goes "
        f"outside the brackets. The number depends on the steps and on the schedule type:\n\n"
        f"| schedule type | prompt at {steps} steps |\n|---|---|\n{rows}"
    )
