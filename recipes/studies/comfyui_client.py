"""What ComfyUI itself draws from an exported single file: by the workflow, by the node, and what we draw.

    OMP_NUM_THREADS=1 PYTHONPATH=plugin COMFY_PYTHON recipes/studies/comfyui_client.py COMFYUI --out runs/comfyui

    OMP_NUM_THREADS=1 PYTHONPATH=plugin COMFY_PYTHON recipes/studies/comfyui_client.py COMFYUI --model xl --out runs/xl

COMFYUI is a checkout of ComfyUI, COMFY_PYTHON a Python that has its requirements and ours. The model is random: Stable
Diffusion 2's text encoder and VAE, and a UNet of two of its levels, exported in float32; or Stable Diffusion XL's two
text encoders and VAE, and a UNet of all its layers that is as wide below as above, which ComfyUI takes for XL's.
ComfyUI loads the file, runs the exported workflow node by node without its window, and the same sampling once more with
one KSampler behind the node *Basinguard rule*. Differences are the largest ones of the final latents; beside them, what
plain CFG is away.

Expected: `results/comfyui_client.md`. Time: 6 minutes on one busy core, XL 10. Memory: 7 GB, XL 10.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from basinguard.core.estimate import Estimate
from basinguard.core.metric import Metric
from basinguard.core.record import Guidance, Record, Sampler
from basinguard.diffusion.sampling import sample_trajectory
from basinguard.exports.comfyui import WorkflowFiles, comfyui_workflow
from basinguard.exports.fingerprints import weights_sha256
from basinguard.exports.model_kind import kind_of
from basinguard.exports.sampler_grids import grid
from basinguard.exports.single_file import export_single_file
from basinguard.guidance.core import SwitchAt
from basinguard.pipelines.architecture import sd21_config, sd21_tokenizer, sdxl_config
from basinguard.pipelines.latent_model import LatentModel

NODE = Path(__file__).parents[2] / "plugin" / "comfyui_basinguard" / "__init__.py"
PROMPT, SEED, CFG, BEFORE, TRANSITION, SIDE = "a red circle on a table", 7, 4.0, -2.0, 500.0, 64
FILE = "small.safetensors"
GRIDS = (("simple", 8), ("sgm_uniform", 6), ("karras", 8), ("exponential", 7))  # with euler: compared with ours
SAMPLERS = ("heun", "dpm_2", "dpmpp_2m", "uni_pc")  # with karras, 8 steps: why an export refuses them
XL_GRIDS = (("simple", 4), ("karras", 5))


def build() -> StableDiffusionPipeline:
    """Random weights, always the same; the text matters visibly."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, block_out_channels=(320, 320), layers_per_block=1, cross_attention_dim=1024,
        attention_head_dim=(5, 5), use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    vae = {key: value for key, value in sd21_config("vae/config.json").items() if not key.startswith("_")}
    text = CLIPTextModel(clip_config(sd21_config("text_encoder/config.json"))).eval()
    return StableDiffusionPipeline(
        AutoencoderKL(**vae).eval(), text, sd21_tokenizer(), loud(unet), scheduler_of("v_prediction"), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def build_xl() -> StableDiffusionXLPipeline:
    """The same of Stable Diffusion XL: every layer of its UNet, at the width of the first level."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        sdxl_config("unet/config.json")
        | {"sample_size": SIDE // 8, "block_out_channels": [320] * 3, "attention_head_dim": [5] * 3}
    ).eval()
    second = sd21_tokenizer()
    first = sd21_tokenizer()
    first.pad_token = "<|endoftext|>"
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_config(sdxl_config("vae/config.json")).eval(), unet=loud(unet),
        text_encoder=CLIPTextModel(clip_config(sdxl_config("text_encoder/config.json"))).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(sdxl_config("text_encoder_2/config.json"))).eval(),
        tokenizer=first, tokenizer_2=second, scheduler=scheduler_of("epsilon"), add_watermarker=False,
    )  # fmt: skip


def clip_config(config: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(**{key: value for key, value in config.items() if key != "architectures"})


def loud(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet that looks at the text, which random weights hardly do."""
    for name, weight in unet.named_parameters():
        if "attn2.to_v" in name:
            weight.data.mul_(20)
    return unet


def scheduler_of(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type, timestep_spacing="trailing",
    )  # fmt: skip


def record_of(pipe: DiffusionPipeline) -> Record:
    """A record with opposite guidance; its numbers are made up, nothing here reads them."""
    signal = float(pipe.scheduler.alphas_cumprod[int(TRANSITION)])
    made_up = Estimate(value=0.0, low=0.0, high=0.1, level=0.95, n=30, method="made up")
    return Record(
        guidance=Guidance(transition=TRANSITION, sigma=((1 - signal) / signal) ** 0.5, before=BEFORE),
        risk=made_up, plain=made_up, alpha=0.1, delta=0.05, promise="", population="",
        metric=Metric(embedder="none", threshold=0.5, source="made up"),
        sampler=Sampler(
            scheduler="ddim", timesteps=8, prediction_type=pipe.scheduler.config.prediction_type,
            resolution=pipe.unet.config.sample_size * pipe.vae_scale_factor, scale=CFG,
        ),
        seeds=(SEED,), base="random", weights_sha256=weights_sha256(pipe), dataset_sha256="0" * 64, versions={},
    )  # fmt: skip


class Client:
    """ComfyUI's nodes, run one after the other as its executor does."""

    def __init__(self, comfyui: Path, base: Path, latent_scale: float) -> None:
        sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(base)]
        sys.path.insert(0, str(comfyui))
        import comfy.options

        comfy.options.enable_args_parsing()
        import nodes
        from comfy_extras import nodes_clip_sdxl, nodes_hooks, nodes_model_advanced

        kinds = (nodes, nodes_hooks, nodes_model_advanced, _module("comfyui_basinguard", NODE))
        self.nodes = {name: node for kind in kinds for name, node in kind.NODE_CLASS_MAPPINGS.items()}
        self.nodes["CLIPTextEncodeSDXL"] = nodes_clip_sdxl.CLIPTextEncodeSDXL
        self.loaded: dict[str, Any] = {}
        self.latent_scale = latent_scale

    def latents(self, flow: dict[str, Any], last: str) -> torch.Tensor:
        """What the node `last` of a workflow gives, in the scale of our latents."""

        @cache
        def outputs(name: str) -> Any:
            kind, given = flow[name]["class_type"], flow[name]["inputs"]
            if kind == "CheckpointLoaderSimple" and kind in self.loaded:
                return self.loaded[kind]
            linked = {k: outputs(v[0])[v[1]] if isinstance(v, list) else v for k, v in given.items()}
            node = self.nodes[kind]
            newer = hasattr(node, "execute")  # of ComfyUI's nodes of the second kind
            result = node.execute(**linked).result if newer else getattr(node(), node.FUNCTION)(**linked)
            self.loaded[kind] = result
            return result

        return outputs(last)[0]["samples"] * self.latent_scale


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_node(flow: dict[str, Any], *, guarded: bool) -> dict[str, Any]:
    """The same sampling by one KSampler, behind the node or as plain CFG."""
    after = flow["after"]["inputs"]
    one = {name: node for name, node in flow.items() if name not in ("before", "after", "decode", "save")}
    one["rule"] = {"class_type": "BasinguardRule", "inputs": {"model": ["model", 0], "source": f"checkpoints/{FILE}"}}
    inputs = {
        "model": ["rule" if guarded else "model", 0], "positive": ["prompt", 0], "negative": ["empty", 0],
        "latent_image": ["noise", 0], "seed": SEED, "steps": after["steps"], "cfg": CFG,
        "sampler_name": after["sampler_name"], "scheduler": after["scheduler"], "denoise": 1.0,
    }  # fmt: skip
    return one | {"sampler": {"class_type": "KSampler", "inputs": inputs}}


def ours(model: LatentModel, scheduler: str, steps: int) -> torch.Tensor:
    """What we draw on the same grid from the same noise."""
    timesteps = torch.tensor(grid(scheduler, steps)).round()
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(SEED))
    rule, prompt = SwitchAt(TRANSITION, BEFORE, CFG), torch.zeros(1, dtype=torch.long)
    *_, last = sample_trajectory(model.denoiser([PROMPT]), noise, prompt, model.schedule, timesteps, rule)
    return last.x_next / float(model.schedule.signal(torch.tensor(-1.0)))


@torch.no_grad()
def main() -> None:
    """Prints and writes one row for each sampler."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("comfyui", type=Path)
    ask.add_argument("--model", choices=("sd2", "xl"), default="sd2")
    ask.add_argument("--out", type=Path, default=Path("runs/comfyui"))
    given = ask.parse_args()
    xl = given.model == "xl"
    pipe, grids = (build_xl(), XL_GRIDS) if xl else (build(), GRIDS)
    record, model, kind = record_of(pipe), LatentModel(pipe, resolution=SIDE), kind_of(pipe)
    checkpoints = given.out / "models" / "checkpoints"
    export_single_file(pipe, record, checkpoints / FILE, precision="float32", overwrite=True)
    own, scale = {row: ours(model, *row) for row in grids}, pipe.vae.config.scaling_factor
    del pipe, model  # two models at once need twice the memory
    client, rows = Client(given.comfyui.resolve(), given.out.resolve(), scale), []
    others = [] if xl else [(name, "karras", 8) for name in SAMPLERS]
    for sampler, scheduler, steps in [("euler", *row) for row in grids] + others:
        options = {"scheduler": scheduler, "steps": steps, "prompt": PROMPT, "seed": SEED}
        flow = comfyui_workflow(record, files=WorkflowFiles(checkpoint=FILE, kind=kind), **options)
        for name in ("before", "after"):
            flow[name]["inputs"]["sampler_name"] = sampler  # the export refuses those of more than one evaluation
        two = client.latents(flow, "after")
        one, plain = (client.latents(with_node(flow, guarded=guarded), "sampler") for guarded in (True, False))
        guarded = flow["before"]["inputs"]["end_at_step"]
        row = {"sampler": sampler, "scheduler": scheduler, "steps": steps, "guarded steps": guarded}
        row |= {"workflow, node": distance(two, one), "plain CFG, node": distance(plain, one)}
        if sampler == "euler":
            drawn = own[scheduler, steps]
            row |= {"workflow, ours": distance(two, drawn), "node, ours": distance(one, drawn)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    (given.out / "comfyui_client.json").write_text(json.dumps(rows, indent=1) + "\n")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference."""
    return float((a - b).abs().max())


if __name__ == "__main__":
    main()
