"""A ComfyUI workflow of core nodes: two `KSamplerAdvanced` in a row.

Its widget takes no negative cfg, but with positive and negative prompt swapped `cfg = 1 - scale` is the same
prediction: c + (1 - s)(u - c) = u + s (c - u). Its cfg 0 is unconditional.
"""

from __future__ import annotations

from typing import Any

from ..core.record import Record
from .sampler_grids import fits, no_schedule, steps_before


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
    switch = 0 if rule.plain else steps_before(rule, scheduler, steps)
    shared = {"noise_seed": seed, "steps": steps, "scheduler": scheduler}
    parts = [("before", *_typed(rule.before), 0, switch), ("after", after, False, switch, steps)]
    last = "noise"
    for name, cfg, swapped, start, end in parts:
        if start < end:
            nodes[name] = _sampler(model, last, cfg, swapped, start, end, shared)
            last = name
    nodes["decode"] = _node("VAEDecode", samples=[last, 0], vae=vae)
    nodes["save"] = _node("SaveImage", images=["decode", 0], filename_prefix="basinguard")
    return nodes


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
