"""A ComfyUI workflow of core nodes: two `KSamplerAdvanced` in a row.

Its widget takes no negative cfg, but with positive and negative prompt swapped `cfg = 1 - scale` is the same
prediction: c + (1 - s)(u - c) = u + s (c - u). Its cfg 0 is unconditional.

Two samplers in a row are the same as one for samplers that evaluate the model once a step and remember nothing. Others
forget at the switch what they remember, or evaluate the end of a step, where the rule is in force no more: in ComfyUI
0.3.64 heun and dpmpp_2m, 8 steps, end 0.49 and 0.64 from the rule, where plain CFG is 0.80 and 0.77 away
(`recipes/results/comfyui_client.md`). The node in plugin/comfyui_basinguard asks each evaluation for its noise level.

Where the strength of a LoRA depends on the timestep, the LoRA hangs on the prompts (`comfyui_strength`) and not on the
model. It goes by noise level, so it is the same for one sampler and for two.

Stable Diffusion XL is told the calibrated size beside the prompt, and its empty prompt is zeros where the model samples
so (`ConditioningZeroOut`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.record import Record
from ..core.recorded_weights import RecordedSchedule
from ..core.safetensors_header import read_header
from .comfyui_nodes import node
from .comfyui_strength import hooked_lora, require_levels
from .layout import HEADER_STRENGTH
from .lora_formats import ADAPTER_METADATA
from .lora_layout import stored_layers
from .model_kind import STABLE_DIFFUSION, ModelKind, kind_at, require_files
from .sampler_grids import grid, is_plain, require_two_scales, steps_before

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
        share: of the trained LoRA that the file has as its strength 1.
    """

    directory: str | None = None
    checkpoint: str = "model.safetensors"
    lora: str | None = None
    kind: ModelKind = STABLE_DIFFUSION
    share: float = 1.0

    @classmethod
    def of(cls, model: str, lora: Path | None = None) -> WorkflowFiles:
        """The files of a model as it was given to a command.

        Raises:
            ValueError: neither a directory nor a file, so that ComfyUI has nothing of that name, another model, or a
                LoRA that is not safetensors.
        """
        path, adapter, share = Path(model).expanduser().resolve(), lora.name if lora else None, share_of(lora)
        if path.is_dir():
            return cls(directory=path.name, lora=adapter, kind=require_files(kind_at(path)), share=share)
        if path.is_file():
            return cls(checkpoint=path.name, lora=adapter, kind=kind_at(path), share=share)
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
        ValueError: a sampler or scheduler that is not covered, steps of which none lies above the transition or at one
            of the record's strengths, a model whose noise schedule ComfyUI does not have, a rule that core nodes cannot
            follow, or a strength by timestep without a LoRA.
    """
    rule, steps = record.guidance, steps or record.sampler.timesteps
    require_two_scales(rule)
    _require_sampler(sampler, scheduler, rule.refine)
    after = rule.after if rule.after is not None else scale if scale is not None else record.sampler.scale
    model, clip, vae, nodes = _loaders(record, files)
    side = record.sampler.resolution
    nodes |= _texts(files.kind, clip, prompt, side)
    nodes["noise"] = node("EmptyLatentImage", "Size", width=side, height=side, batch_size=1)
    switch = 0 if is_plain(rule) else steps_before(rule, scheduler, steps)
    if not (is_plain(rule) or switch):
        raise ValueError(
            f"none of {steps} steps of {scheduler} lies above the transition, timestep {rule.transition:g}: that would "
            "be plain CFG; take more steps or another scheduler"
        )
    fine, schedule = rule.refine, record.product.strength_schedule
    if schedule is not None:
        visited = [*grid(scheduler, steps)[:switch], *grid(scheduler, steps * fine)[switch * fine :]]
        require_levels(schedule, visited, scheduler)
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
    nodes["decode"] = node("VAEDecode", "Decode", samples=[last, 0], vae=vae)
    nodes["save"] = node("SaveImage", "Save", images=["decode", 0], filename_prefix="basinguard")
    return nodes


def why_unwritten(record: Record, kind: ModelKind) -> str:
    """Why a directory has no workflow, with its LoRA if the strength depends on the timestep; "" where it has one."""
    try:
        comfyui_workflow(record, files=WorkflowFiles(directory="model", lora="model.safetensors", kind=kind))
    except ValueError as error:
        return str(error)
    return ""


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


def _loaders(record: Record, files: WorkflowFiles) -> tuple[Any, Any, Any, dict]:
    """Links to model, clip and vae, and the nodes they come from; the prediction type is said, not guessed."""
    if files.directory:
        load = node("DiffusersLoader", "Model", model_path=files.directory)
    else:
        load = node("CheckpointLoaderSimple", "Model", ckpt_name=files.checkpoint)
    nodes, model, clip = {"load": load}, ["load", 0], ["load", 1]
    if schedule := record.product.strength_schedule:
        nodes |= hooked_lora(schedule, _whole_lora(schedule, files), clip)
        clip = ["hooked", 0]
    elif files.lora:
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        nodes["lora"] = node("LoraLoader", "LoRA", model=model, clip=clip, lora_name=files.lora, **strengths)
        model, clip = ["lora", 0], ["lora", 1]
    kind = "v_prediction" if record.sampler.prediction_type == "v_prediction" else "eps"
    nodes["model"] = node("ModelSamplingDiscrete", "What the model predicts", model=model, sampling=kind, zsnr=False)
    return ["model", 0], clip, ["load", 2], nodes


def share_of(lora: Path | None) -> float:
    """The share of a trained LoRA that a file says it has as its strength 1; 1 where there is no such file.

    Raises:
        ValueError: not safetensors, a share that is no number, or an alpha where ComfyUI does not look for it.
    """
    if lora is None or not lora.is_file():
        return 1.0
    header = read_header(lora)
    in_header = ADAPTER_METADATA in header.metadata  # ComfyUI would take the rank for alpha
    if in_header and any(layer.alpha not in (None, layer.rank) for layer in stored_layers(lora, header)):
        raise ValueError(f"{lora}: its alpha is said in the header, which ComfyUI does not read; export it as kohya")
    share = header.metadata.get(HEADER_STRENGTH, "1")
    try:
        return float(share)
    except ValueError:
        raise ValueError(f"{lora}: {share[:40]!r} as {HEADER_STRENGTH} in its header; export it again") from None


def _whole_lora(schedule: RecordedSchedule, files: WorkflowFiles) -> str:
    if files.lora is None:
        raise ValueError(
            f"the record's strength depends on the timestep ({schedule}), which one checkpoint cannot hold: give the "
            "LoRA by itself (--lora) and the model without it"
        )
    if files.share != 1:
        raise ValueError(
            f"{files.lora} has {files.share:g} of the trained LoRA as its strength 1, and the record's strengths "
            f"({schedule}) are of the whole: export it with --strength 1"
        )
    return files.lora


def _texts(kind: ModelKind, clip: Any, prompt: str, side: int) -> dict[str, Any]:
    """The nodes "prompt" and "empty", and what they need."""
    empty = "Empty prompt (leave it empty)"
    if not kind.xl:
        return {
            "prompt": node("CLIPTextEncode", "Prompt", clip=clip, text=prompt),
            "empty": node("CLIPTextEncode", empty, clip=clip, text=""),
        }
    nodes = {
        "prompt": _text_of_xl("Prompt (both fields alike)", clip, prompt, side),
        "empty": _text_of_xl(empty, clip, "", side),
    }
    if kind.zero_empty:
        nodes["nothing"] = nodes.pop("empty")
        nodes["empty"] = node("ConditioningZeroOut", "Zeros, as the model samples", conditioning=["nothing", 0])
    return nodes


def _text_of_xl(title: str, clip: Any, text: str, side: int) -> dict[str, Any]:
    """Both text encoders' states of a prompt, and the sizes that go with them: the picture's own, uncropped."""
    sizes = {"width": side, "height": side, "crop_w": 0, "crop_h": 0, "target_width": side, "target_height": side}
    return node("CLIPTextEncodeSDXL", title, clip=clip, **sizes, text_g=text, text_l=text)


def _sampler(
    title: str, model: Any, latent: str, cfg: float, swapped: bool, start: int, end: int, shared: dict[str, Any]
) -> dict[str, Any]:
    positive, negative = ("empty", "prompt") if swapped else ("prompt", "empty")
    return node(
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
