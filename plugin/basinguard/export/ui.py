"""The rule in other people's sampling tools, computed from the record."""

from __future__ import annotations

from ..records import Guidance


def comfyui_text(rule: Guidance) -> str:
    """What to build from ComfyUI's core nodes."""
    share = f"{1 - rule.transition / 999:.4f}"
    if rule.before == 0:
        return (
            f"Combine (`Conditioning (Combine)`) your prompt with timestep range {share} to 1 and an empty prompt with "
            f"range 0 to {share} (`ConditioningSetTimestepRange`); leave the negative prompt empty."
        )
    swapped = f"{1 - rule.before:g}"
    return (
        "Two `KSamplerAdvanced` in a row with the same number of steps, the second with `add_noise` disabled. The "
        f"first ends at the first step whose timestep is {rule.transition:g} or less, returns the leftover noise, and "
        f"has positive and negative prompt swapped at cfg {swapped}, which is scale {rule.before:g}."
    )


def a1111_text(rule: Guidance, timesteps: int) -> str:
    """The prompt to type, or why there is none."""
    if rule.before != 0:
        return (
            f"NOT guarded: a scale of {rule.before:g} cannot be typed there. Scale 0 before the transition can: "
            f"`[:your prompt:{_share(rule, timesteps)}]` with an empty negative prompt; it was not measured here."
        )
    return (
        f"Guarded by prompt editing: `[:your prompt:{_share(rule, timesteps)}]` at {timesteps} steps with an empty "
        "negative prompt, any CFG scale, schedule type Uniform or Automatic; `<lora:...>` stays outside the brackets."
    )


def _share(rule: Guidance, timesteps: int) -> str:
    return f"{sum(999 - 1000 * i / timesteps > rule.transition for i in range(timesteps)) / timesteps:.2f}"
