"""How to sample by the rule in ComfyUI and A1111, in words, for the model card and the header of a LoRA."""

from __future__ import annotations

from ..core.record import Record
from ..core.recorded_weights import RecordedSchedule
from .a1111 import ONE_STRENGTH, SCHEDULES, a1111_prompt
from .comfyui import why_unwritten
from .comfyui_strength import levels_hint
from .layout import COMFYUI_FOLDER, WORKFLOW_FILE
from .model_kind import STABLE_DIFFUSION, ModelKind
from .sampler_grids import fits, no_schedule, steps_before

NODE = "the node *Basinguard rule* (plugin/comfyui_basinguard of the basinguard repository)"


def comfyui_text(record: Record, kind: ModelKind = STABLE_DIFFUSION) -> str:
    """A Markdown sentence that begins with whether it is guarded."""
    rule, steps = record.guidance, record.sampler.timesteps
    if kind.flow:
        return _unread(kind, plain=rule.plain and not record.product.strength_schedule)
    if not fits(rule):
        return f"{no_schedule(rule)}.**"
    if schedule := record.product.strength_schedule:
        return _by_levels(record, schedule, kind)
    zeros = " Its negative prompt is zeros (the node `ConditioningZeroOut`)." if kind.zero_empty else ""
    if rule.plain:
        place = f"Put this directory into `models/diffusers`; cfg {record.scale:g}."
        return f"as promised, with nothing to add.** {place}{zeros}"
    switch = steps_before(rule, "simple", steps)
    cfg = (
        f"cfg {rule.before:g}" if rule.before >= 0 else f"cfg {1 - rule.before:g}, positive and negative prompt swapped"
    )
    after = f"cfg {record.scale:g}"
    return (
        f"guarded, core nodes only.** Put this directory into `models/diffusers` and drop "
        f"[`{WORKFLOW_FILE}`]({WORKFLOW_FILE}) on the window: two `KSamplerAdvanced`, steps 0 to {switch} with {cfg}, "
        f"steps {switch} to {steps} with {after}. "
        f"For other steps, samplers or schedulers: `basinguard export --kind comfyui`, or {NODE}, which steers any of "
        f"them by the noise level.{zeros}"
    )


def _by_levels(record: Record, schedule: RecordedSchedule, kind: ModelKind) -> str:
    """Of a LoRA whose strength depends on the timestep."""
    if why := why_unwritten(record, kind):
        return f"NOT guarded.** {why[:1].upper()}{why[1:]}."
    return (
        f"guarded, core nodes only.** Put this directory into `models/diffusers`, the file in its folder "
        f"[`{COMFYUI_FOLDER}`]({COMFYUI_FOLDER}) into `models/loras`, and drop [`{WORKFLOW_FILE}`]({WORKFLOW_FILE}) on "
        f"the window. By hand: {levels_hint(schedule).removeprefix('ComfyUI: ')}"
    )


def a1111_text(record: Record, kind: ModelKind = STABLE_DIFFUSION) -> str:
    """A Markdown sentence that begins with whether it is guarded."""
    rule, steps = record.guidance, record.sampler.timesteps
    if kind.flow:
        return _unread(kind, plain=rule.plain and not record.product.strength_schedule)
    if not fits(rule):
        return f"{no_schedule(rule)}.**"
    if record.product.strength_schedule:
        return f"NOT guarded.** {ONE_STRENGTH}."
    if rule.plain:
        return f"as promised, with nothing to add.** CFG scale {record.scale:g}."
    rows = {schedule: _typed(record, schedule, kind) for schedule in SCHEDULES}
    if not any(rows.values()):
        return f"NOT guarded.** {_refusal(record, kind)}."
    table = "\n".join(f"| {schedule} | {f'`{text}`' if text else 'not possible'} |" for schedule, text in rows.items())
    cfg = f"CFG scale {record.scale:g} and no other" if rule.before else "any CFG scale"
    return (
        f"guarded by prompt editing.** {steps} steps, empty negative prompt, {cfg}; a `<lora:...>` tag goes outside "
        "the brackets. The share depends on the steps and on the schedule type, not on the sampler's order:\n\n"
        f"| schedule type | prompt at {steps} steps |\n|---|---|\n{table}"
    )


def _unread(kind: ModelKind, *, plain: bool) -> str:
    """Of a client for which nothing is written of this kind."""
    lead = "as promised with the scale above, untried" if plain else "NOT guarded"
    return f"{lead}.** Nothing is written for it of {kind.name}; sample with diffusers."


def a1111_hint(record: Record, kind: ModelKind = STABLE_DIFFUSION) -> str:
    """What to type there at the steps of the calibration, in one sentence; "" where it cannot be typed."""
    text = _typed(record, "Simple", kind)
    cfg = f", CFG scale {record.scale:g}" if record.guidance.before else ""
    return f"A1111: {text}{cfg}, empty negative prompt. " if text else ""


def _typed(record: Record, schedule: str, kind: ModelKind) -> str:
    try:
        return a1111_prompt(record, "your prompt", schedule=schedule, kind=kind)
    except ValueError:
        return ""


def _refusal(record: Record, kind: ModelKind) -> str:
    try:
        a1111_prompt(record, "your prompt", kind=kind)
    except ValueError as error:
        return str(error)
    return ""
