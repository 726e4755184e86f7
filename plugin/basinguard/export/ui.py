"""The rule in other people's sampling tools, computed from the record for the user's own steps and scheduler.

ComfyUI: two `KSamplerAdvanced` in a row. Its widget takes no negative cfg, but with positive and negative prompt
swapped `cfg = 1 - scale` is the same prediction: c + (1 - s)(u - c) = u + s (c - u). Its cfg 0 is unconditional.

A1111 and Forge: prompt editing. While the prompt is still empty both predictions are the same, so any cfg is scale 0;
no other scale before the transition can be typed there.

Both assume Stable Diffusion's own noise schedule; a model with another one cannot be sampled there at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import Guidance, Record
from ..toy import stable_diffusion_schedule

Grid = NDArray[np.float64]
LAST = 999
SLACK = 0.02  # share by which a record's noise level may differ from Stable Diffusion's at the same timestep


def _log_sigmas() -> Grid:
    return np.log(stable_diffusion_schedule().sigma(np.arange(LAST + 1.0)).numpy())


def _karras(steps: int) -> Grid:
    """Source: Karras et al., arXiv 2206.00364, eq. 5 with rho = 7."""
    table = _log_sigmas()
    low, high = np.exp(table[0] / 7), np.exp(table[-1] / 7)
    return np.interp(7 * np.log(np.linspace(high, low, steps)), table, np.arange(LAST + 1.0))


GRIDS: dict[str, Callable[[int], Grid]] = {
    "simple": lambda steps: LAST - np.floor(np.arange(steps) * (1000 / steps)),
    "normal": lambda steps: np.linspace(LAST, 0, steps),
    "sgm_uniform": lambda steps: np.linspace(LAST, 0, steps + 1)[:-1],
    "ddim_uniform": lambda steps: np.arange(1.0, 1000, max(1000 // steps, 1))[::-1],
    "karras": _karras,
}
A1111 = {"Simple": "simple", "Uniform": "normal", "SGM Uniform": "sgm_uniform", "DDIM": "ddim_uniform", "Karras": "karras"}


def grid(scheduler: str, steps: int) -> Grid:
    """Timesteps that a ComfyUI scheduler visits, descending.

    Example:
        >>> grid("simple", 4).tolist()
        [999.0, 749.0, 499.0, 249.0]

    Source: ComfyUI, comfy/samplers.py (`calculate_sigmas`); A1111's modules/sd_schedulers.py has the same.
    """
    if scheduler not in GRIDS:
        raise ValueError(f"scheduler {scheduler!r} is unknown; known: {', '.join(GRIDS)} (A1111: {', '.join(A1111)})")
    if not 1 <= steps <= 1000:
        raise ValueError(f"{steps} sampling steps given, expected 1 to 1000")
    return GRIDS[scheduler](steps)


def steps_before(rule: Guidance, scheduler: str, steps: int) -> int:
    """How many sampling steps lie above the transition."""
    return int((grid(scheduler, steps) > rule.transition).sum())


def fits(rule: Guidance) -> bool:
    """Whether the record's noise level is the one that ComfyUI and A1111 have at its transition."""
    sigma = float(np.exp(_log_sigmas()[round(rule.transition)]))
    return abs(sigma - rule.sigma) <= SLACK * sigma


def comfyui_workflow(
    record: Record,
    *,
    steps: int | None = None,
    scheduler: str = "simple",
    scale: float | None = None,
    directory: str | None = None,
    checkpoint: str = "model.safetensors",
    lora: str | None = None,
    prompt: str = "your prompt",
    seed: int = 0,
) -> dict[str, Any]:
    """A workflow of core nodes in ComfyUI's API format, which its window also takes by drag and drop.

    Args:
        record: the calibration.
        steps, scheduler, scale: the user's own; steps and scale default to what was measured.
        directory: a diffusers directory below ComfyUI's `models/diffusers`; else `checkpoint` is loaded.
        checkpoint: a file below `models/checkpoints`.
        lora: a file below `models/loras`.
        prompt: what to draw.
        seed: of the noise.

    Raises:
        ValueError: an unknown scheduler, or a model whose noise schedule ComfyUI does not have.
    """
    rule = record.guidance
    if not fits(rule):
        raise ValueError(no_schedule(rule))
    steps = steps or record.sampler.timesteps
    after = rule.after if rule.after is not None else scale if scale is not None else record.sampler.scale
    model, clip, vae, nodes = _loaders(record, directory, checkpoint, lora)
    nodes["prompt"] = _node("CLIPTextEncode", clip=clip, text=prompt)
    nodes["empty"] = _node("CLIPTextEncode", clip=clip, text="")
    side = record.sampler.resolution
    nodes["noise"] = _node("EmptyLatentImage", width=side, height=side, batch_size=1)
    switch, shared = steps_before(rule, scheduler, steps), {"noise_seed": seed, "steps": steps, "scheduler": scheduler}
    parts = [("before", *_typed(rule.before), 0, switch), ("after", after, False, switch, steps)]
    last = "noise"
    for name, cfg, swapped, start, end in parts:
        if start < end:
            nodes[name] = _sampler(model, last, cfg, swapped, start, end, shared)
            last = name
    nodes["decode"] = _node("VAEDecode", samples=[last, 0], vae=vae)
    nodes["save"] = _node("SaveImage", images=["decode", 0], filename_prefix="basinguard")
    return nodes


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
    if rule.before != 0:
        raise ValueError(f"prompt editing is scale 0 before the transition; this record's is {rule.before:g}")
    if schedule not in A1111:
        raise ValueError(f"schedule type {schedule!r}; expected one of {', '.join(A1111)}")
    if any(mark in prompt for mark in ":|[]<>"):
        raise ValueError(f"{prompt!r}: the characters : | [ ] < > mean something else inside prompt editing")
    switch = steps_before(rule, A1111[schedule], steps or record.sampler.timesteps)
    edited = f"[:{prompt}:{switch - 1}]" if switch else prompt
    return f"{edited} <lora:{lora}:1>" if lora else edited


def no_schedule(rule: Guidance) -> str:
    """Why this model cannot be sampled in ComfyUI or A1111."""
    return (
        f"not possible: noise level {rule.sigma:.3g} at timestep {rule.transition:g} is not Stable Diffusion's schedule, "
        "the only one those tools have"
    )


def _typed(scale: float) -> tuple[float, bool]:
    """The cfg to type for a scale, and whether positive and negative prompt must be swapped."""
    return (scale, False) if scale >= 0 else (1 - scale, True)


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _loaders(record: Record, directory: str | None, checkpoint: str, lora: str | None) -> tuple[Any, Any, Any, dict]:
    """Links to model, clip and vae, and the nodes they come from; the prediction type is said, not guessed."""
    load = _node("DiffusersLoader", model_path=directory) if directory else None
    nodes = {"load": load or _node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    source = "load"
    if lora:
        link = {"model": ["load", 0], "clip": ["load", 1]}
        nodes["lora"] = _node("LoraLoader", **link, lora_name=lora, strength_model=1.0, strength_clip=1.0)
        source = "lora"
    kind = "v_prediction" if record.sampler.prediction_type == "v_prediction" else "eps"
    nodes["model"] = _node("ModelSamplingDiscrete", model=[source, 0], sampling=kind, zsnr=False)
    return ["model", 0], [source, 1], ["load", 2], nodes


def _sampler(model: Any, latent: str, cfg: float, swapped: bool, start: int, end: int, shared: dict) -> dict[str, Any]:
    positive, negative = ("empty", "prompt") if swapped else ("prompt", "empty")
    return _node(
        "KSamplerAdvanced",
        model=model,
        positive=[positive, 0],
        negative=[negative, 0],
        latent_image=[latent, 0],
        add_noise="enable" if start == 0 else "disable",
        cfg=cfg,
        sampler_name="euler",
        start_at_step=start,
        end_at_step=end,
        return_with_leftover_noise="enable" if end < shared["steps"] else "disable",
        **shared,
    )
