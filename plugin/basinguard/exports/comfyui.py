"""A ComfyUI workflow of core nodes: two `KSamplerAdvanced` in a row.

Its widget takes no negative cfg, but with positive and negative prompt swapped `cfg = 1 - scale` is the same
prediction: c + (1 - s)(u - c) = u + s (c - u). Its cfg 0 is unconditional.

Two samplers in a row are the same as one for samplers that evaluate the model once a step and remember nothing. Others
forget at the switch what they remember, or evaluate the end of a step, where the rule is in force no more: in ComfyUI
0.3.64 heun and dpmpp_2m, 8 steps, end 0.49 and 0.64 from the rule, where plain CFG is 0.80 and 0.77 away
(`recipes/results/comfyui_client.md`). The node in plugin/comfyui_basinguard asks each evaluation for its noise level.

Stable Diffusion XL is told the calibrated size beside the prompt, and its empty prompt is zeros where the model samples
so (`ConditioningZeroOut`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.record import Record
from .model_kind import STABLE_DIFFUSION, ModelKind, kind_at, require_files
from .sampler_grids import is_plain, require_two_scales, steps_before

REFINABLE = ("simple", "sgm_uniform")  # schedulers whose grid for n * k steps holds that for n
SAMPLERS = ("euler", "euler_ancestral", "ddim", "ddpm")  # one evaluation a step, and no memory of earlier ones


@dataclass(frozen=True)
class WorkflowFiles:
    """What a workflow loads, by the names that ComfyUI lists.

    Attributes:
        directory: a diffusers directory below `models/diffusers`.
        checkpoint: a single file below `models/checkpoints`; used where there is no directory.
        lora: a file below `models/loras` to put on it.
        kind: of the model.
    """

    directory: str | None = None
    checkpoint: str = "model.safetensors"
    lora: str | None = None
    kind: ModelKind = STABLE_DIFFUSION

    @classmethod
    def of(cls, model: str, lora: Path | None = None) -> WorkflowFiles:
        """The files of a model as it was given to a command.

        Raises:
            ValueError: neither a directory nor a file, so that ComfyUI has nothing of that name, or another model.
        """
        path, adapter = Path(model).expanduser().resolve(), lora.name if lora else None
        if path.is_dir():
            return cls(directory=path.name, lora=adapter, kind=require_files(kind_at(path)))
        if path.is_file():
            return cls(checkpoint=path.name, lora=adapter, kind=kind_at(path))
        raise ValueError(
            f"model {model!r}: a workflow names files; give the diffusers directory or the single file (.safetensors) "
            "that lies below ComfyUI's models/"
        )

    def places(self) -> str:
        """Where they have to lie, in words."""
        own = f"diffusers/{self.directory}" if self.directory else f"checkpoints/{self.checkpoint}"
        return f"models/{own}" + (f" and models/loras/{self.lora}" if self.lora else "")


def comfyui_workflow(
    record: Record,
    *,
    files: WorkflowFiles = WorkflowFiles(),
    prompt: str = "your prompt",
    steps: int | None = None,
    sampler: str = "euler",
    scheduler: str = "simple",
    scale: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """A workflow of core nodes in ComfyUI's API format, which its window also takes by drag and drop.

    Args:
        record: the calibration.
        files: what it loads.
        prompt: what to draw.
        steps, scale: the user's own; those that were measured by default.
        sampler, scheduler: ComfyUI's names.
        seed: of the noise.

    Raises:
        ValueError: a sampler or scheduler that is not covered, steps of which none lies above the transition, a model
            whose noise schedule ComfyUI does not have, or a rule that core nodes cannot follow.
    """
    rule, steps = record.guidance, steps or record.sampler.timesteps
    require_two_scales(rule)
    _require_sampler(sampler, scheduler, rule.refine)
    after = rule.after if rule.after is not None else scale if scale is not None else record.sampler.scale
    model, clip, vae, nodes = _loaders(record, files)
    side = record.sampler.resolution
    nodes |= _texts(files.kind, clip, prompt, side)
    nodes["noise"] = _node("EmptyLatentImage", "Size", width=side, height=side, batch_size=1)
    switch = 0 if is_plain(rule) else steps_before(rule, scheduler, steps)
    if not (is_plain(rule) or switch):
        raise ValueError(
            f"none of {steps} steps of {scheduler} lies above the transition, timestep {rule.transition:g}: that would "
            "be plain CFG; take more steps or another scheduler"
        )
    fine = rule.refine
    parts = [
        ("before", f"Above the transition: scale {rule.before:g}", *_typed(rule.before), 0, switch, steps),
        ("after", f"From the transition on: CFG {after:g}", after, False, switch * fine, steps * fine, steps * fine),
    ]
    last = "noise"
    for name, title, cfg, swapped, start, end, whole in parts:
        if start < end:
            shared = {"noise_seed": seed + (last != "noise"), "steps": whole, "scheduler": scheduler}
            shared["sampler_name"] = sampler
            nodes[name] = _sampler(title, model, last, cfg, swapped, start, end, shared)
            last = name
    nodes["decode"] = _node("VAEDecode", "Decode", samples=[last, 0], vae=vae)
    nodes["save"] = _node("SaveImage", "Save", images=["decode", 0], filename_prefix="basinguard")
    return nodes


def _require_sampler(sampler: str, scheduler: str, refine: int) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(
            f"sampler {sampler!r} evaluates more than once a step, or remembers earlier ones: two in a row are not the "
            f"same as one. Covered: {', '.join(SAMPLERS)}; ComfyUI's basinguard node takes any"
        )
    if refine > 1 and (scheduler not in REFINABLE or sampler != "euler"):
        raise ValueError(
            f"the rule refines the steps from the transition on {refine} times: covered for sampler euler with "
            f"scheduler {' or '.join(REFINABLE)}, not for {sampler} with {scheduler}"
        )


def _typed(scale: float) -> tuple[float, bool]:
    """The cfg to type for a scale, and whether positive and negative prompt must be swapped."""
    return (scale, False) if scale >= 0 else (1 - scale, True)


def _node(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}


def _loaders(record: Record, files: WorkflowFiles) -> tuple[Any, Any, Any, dict]:
    """Links to model, clip and vae, and the nodes they come from; the prediction type is said, not guessed."""
    if files.directory:
        load = _node("DiffusersLoader", "Model", model_path=files.directory)
    else:
        load = _node("CheckpointLoaderSimple", "Model", ckpt_name=files.checkpoint)
    nodes, source = {"load": load}, "load"
    if files.lora:
        link = {"model": ["load", 0], "clip": ["load", 1]}
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        nodes["lora"] = _node("LoraLoader", "LoRA", **link, lora_name=files.lora, **strengths)
        source = "lora"
    kind = "v_prediction" if record.sampler.prediction_type == "v_prediction" else "eps"
    nodes["model"] = _node(
        "ModelSamplingDiscrete", "What the model predicts", model=[source, 0], sampling=kind, zsnr=False
    )
    return ["model", 0], [source, 1], ["load", 2], nodes


def _texts(kind: ModelKind, clip: Any, prompt: str, side: int) -> dict[str, Any]:
    """The nodes "prompt" and "empty", and what they need."""
    empty = "Empty prompt (leave it empty)"
    if not kind.xl:
        return {
            "prompt": _node("CLIPTextEncode", "Prompt", clip=clip, text=prompt),
            "empty": _node("CLIPTextEncode", empty, clip=clip, text=""),
        }
    nodes = {
        "prompt": _text_of_xl("Prompt (both fields alike)", clip, prompt, side),
        "empty": _text_of_xl(empty, clip, "", side),
    }
    if kind.zero_empty:
        nodes["nothing"] = nodes.pop("empty")
        nodes["empty"] = _node("ConditioningZeroOut", "Zeros, as the model samples", conditioning=["nothing", 0])
    return nodes


def _text_of_xl(title: str, clip: Any, text: str, side: int) -> dict[str, Any]:
    """Both text encoders' states of a prompt, and the sizes that go with them: the picture's own, uncropped."""
    sizes = {"width": side, "height": side, "crop_w": 0, "crop_h": 0, "target_width": side, "target_height": side}
    return _node("CLIPTextEncodeSDXL", title, clip=clip, **sizes, text_g=text, text_l=text)


def _sampler(
    title: str, model: Any, latent: str, cfg: float, swapped: bool, start: int, end: int, shared: dict[str, Any]
) -> dict[str, Any]:
    positive, negative = ("empty", "prompt") if swapped else ("prompt", "empty")
    return _node(
        "KSamplerAdvanced",
        title,
        model=model,
        positive=[positive, 0],
        negative=[negative, 0],
        latent_image=[latent, 0],
        add_noise="enable" if start == 0 else "disable",
        cfg=cfg,
        start_at_step=start,
        end_at_step=end,
        return_with_leftover_noise="enable" if end < shared["steps"] else "disable",
        **shared,
    )
