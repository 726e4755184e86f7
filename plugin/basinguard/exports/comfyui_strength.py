"""A LoRA whose strength depends on the timestep, in ComfyUI's core nodes: a hook with a keyframe for each level.

The hook lies on the text encoder's link, from where it goes to every prompt that is encoded, so that both branches of
CFG have the same strength. The denoiser's part of the LoRA follows the keyframes; the text encoder's part, if there is
one, acts whole, as in our own sampling.

A keyframe begins where (1 - start_percent) * 999 is the timestep. `start_percents` puts it within the timestep above
its transition and not on it, where rounding decides: with scheduler simple, 132 of 998 timesteps would then come a step
late. They are thousandths: ComfyUI's window rounds to those when a file is dropped on it, and strengths to hundredths.

Source: ComfyUI 0.3.64, comfy_extras/nodes_hooks.py, comfy/hooks.py (`HookKeyframeGroup`), comfy/model_sampling.py
(`ModelSamplingDiscrete.percent_to_sigma`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..core.recorded_weights import RecordedSchedule
from .comfyui_nodes import Link, Nodes, node

TOP = 999  # the timestep that start_percent counts down from


def start_percents(transitions: Sequence[float]) -> list[float]:
    """Where each level begins, the first at 0: `start_percent` of the keyframes, in thousandths.

    Example:
        >>> start_percents([500.0])
        [0.0, 0.499]
    """
    return [0.0, *((TOP - int(transition)) / 1000 for transition in transitions)]


def levels_at(schedule: RecordedSchedule, timesteps: Sequence[float]) -> list[int]:
    """Which level, counted from 0, each timestep of a sampler's grid has in ComfyUI."""
    begins = [(1 - percent) * TOP for percent in start_percents(schedule.transitions)[1:]]
    return [sum(timestep <= begin for begin in begins) for timestep in timesteps]


def require_levels(schedule: RecordedSchedule, timesteps: Sequence[float], scheduler: str) -> None:
    """Refuses a grid that jumps over a level: ComfyUI holds each keyframe that it comes to for one step at least.

    Args:
        schedule: of the strength.
        timesteps: of the grid, descending.
        scheduler: its name.

    Raises:
        ValueError: names the level and what may help.
    """
    for before, after in pairwise(levels_at(schedule, timesteps)):
        if after > before + 1:
            low, high = schedule.transitions[before + 1], schedule.transitions[before]
            raise ValueError(
                f"none of {len(timesteps)} steps of {scheduler} lies between timesteps {high:g} and {low:g}, where "
                f"the strength is {schedule.strengths[before + 1]:g}: ComfyUI would hold it for one step all the same; "
                "take more steps, or another scheduler"
            )


def levels_hint(schedule: RecordedSchedule) -> str:
    """What to set in ComfyUI, and what writes it, in one sentence."""
    levels = zip(schedule.strengths, start_percents(schedule.transitions), strict=True)
    keyframes = ", ".join(f"{strength:g} at start_percent {percent:g}" for strength, percent in levels)
    return (
        f"ComfyUI: Create Hook LoRA with keyframes {keyframes}, on both prompts (basinguard export --kind comfyui "
        "--lora LORA writes that workflow); a plain LoRA loader has all of the LoRA at every timestep."
    )


def hooked_lora(schedule: RecordedSchedule, lora: str, clip: Link) -> Nodes:
    """The nodes of a LoRA by timestep; the last, "hooked", is the text encoder whose prompts carry it.

    Args:
        schedule: of its strength.
        lora: a file below `models/loras`, at the whole trained strength.
        clip: link to the model's own text encoder.
    """
    whole = {"strength_model": 1.0, "strength_clip": 1.0}
    nodes = {"lora": node("CreateHookLora", "LoRA, at the strengths below", lora_name=lora, **whole)}
    previous: dict[str, Link] = {}
    starts = [" at high noise", *(f" from timestep {transition:g} down" for transition in schedule.transitions)]
    percents = start_percents(schedule.transitions)
    for at, (strength, percent, start) in enumerate(zip(schedule.strengths, percents, starts, strict=True), 1):
        place = {"strength_mult": strength, "start_percent": percent}
        nodes[f"level {at}"] = node("CreateHookKeyframe", f"Strength {strength:g}{start}", **place, **previous)
        previous = {"prev_hook_kf": [f"level {at}", 0]}
    levels = {"hooks": ["lora", 0], "hook_kf": previous["prev_hook_kf"]}
    nodes["levels"] = node("SetHookKeyframes", "LoRA by timestep", **levels)
    on_prompts = {"apply_to_conds": True, "schedule_clip": False}
    nodes["hooked"] = node("SetClipHooks", "On both prompts", clip=clip, hooks=["levels", 0], **on_prompts)
    return nodes
