"""What ships of a Stable Diffusion XL at full size without the weights: random numbers, shipped, reloaded, trained on.

    python recipes/studies/fullsize_xl.py --out runs/fullsize_xl
    python recipes/studies/fullsize_xl.py --size small --out runs/fullsize_xl_small

UNet (2.57 billion parameters), both text encoders (0.82) and VAE (0.08) are built from the true configurations
(`plugin/basinguard/pipelines/assets/sdxl`) in bfloat16, with a random LoRA on the UNet. Each group of stages has a
process of its own: the LoRA as a file of kohya's names, and all of it merged as a guarded directory; that directory
loaded and sampled at 256 px for three steps by its rule; one LoRA update on it as `basinguard fit` makes it. Time and
peak resident memory of each stage go to `fullsize_xl.json` as the groups end. The record is made up: random weights
copy nothing, and a calibration takes hundreds of evaluations. `docs/settings.md` says what fits on which card.

Time: 3 minutes on one idle core. Memory: about 10 GB, disk 8 GB. `--size small`: a minute, 1 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from fullsize_proof import PX, SMALL, fitted, measured, surroundings, write_images
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import basinguard
from basinguard.core.estimate import Estimate
from basinguard.core.metric import Metric
from basinguard.core.record import Guidance, Record, Sampler
from basinguard.exports.directory import export_directory
from basinguard.exports.integrity import check_export
from basinguard.exports.lora import export_lora, lora_layers
from basinguard.exports.lora_formats import lora_sha256
from basinguard.pipelines.architecture import sd21_tokenizer, sdxl_config
from basinguard.pipelines.protect import last_trace
from basinguard.training.finetune_options import LoraOptions
from basinguard.training.fit_cli import quiet_lightning

TRANSITION, TIMESTEPS, SCALE = 500, 3, 5.0
SMALL_XL = {
    "unet": {
        "block_out_channels": [32, 32, 64], "attention_head_dim": [1, 1, 2], "transformer_layers_per_block": [1, 1, 2],
        "cross_attention_dim": 128, "projection_class_embeddings_input_dim": 6 * 256 + 64,
    },
    "text_encoder": SMALL["text_encoder"], "text_encoder_2": {**SMALL["text_encoder"], "projection_dim": 64},
    "vae": SMALL["vae"],
}  # fmt: skip
STAGES = ("ship", "reload", "lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fullsize_xl"))
    parser.add_argument("--size", choices=("sdxl", "small"), default="sdxl")
    parser.add_argument("--stage", choices=STAGES, help="run one group of stages in this process (used by the recipe)")
    asked = parser.parse_args()
    if asked.stage:
        run(asked)
        return
    for group in STAGES:
        command = [sys.executable, __file__, "--out", str(asked.out), "--size", asked.size, "--stage", group]
        subprocess.run(command, check=True)


def run(asked: argparse.Namespace) -> None:
    """One group of stages; what it measured goes beside that of the groups before."""
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "fullsize_xl.json"
    result = json.loads(path.read_text()) if path.is_file() else {"size": asked.size, "resolution": PX, "stages": {}}
    result["stages"] |= {"ship": ship, "reload": reload, "lora": lora}[asked.stage](asked)
    result |= surroundings(asked) | {"command": f"python recipes/studies/fullsize_xl.py --size {asked.size}"}
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(asked.stage, "done", flush=True)


def config(name: str, size: str) -> dict[str, Any]:
    own = sdxl_config(f"{name}/config.json") | (SMALL_XL[name] if size == "small" else {})
    return {key: value for key, value in own.items() if key != "architectures"}


def filled(make: Callable[[], Any]) -> Any:
    """A module in bfloat16 whose matrices repeat one block of random numbers: a minute less than drawing them all."""
    with torch.device("meta"):
        module = make().to(torch.bfloat16)
    module.to_empty(device="cpu")
    block = torch.randn(2**20).to(torch.bfloat16) * 0.02
    for name, weight in module.named_parameters():
        flat = weight.data.view(-1)
        if weight.ndim == 1:
            flat.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            flat.copy_(block.repeat(-(-len(flat) // len(block)))[: len(flat)])
    for name, buffer in module.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return module.eval()


def ship(asked: argparse.Namespace) -> dict[str, Any]:
    """A pipeline of random numbers and a LoRA: the LoRA's file, and the guarded directory of both."""
    stages: dict[str, Any] = {}
    torch.manual_seed(0)
    with measured(stages, "build") as note:
        pipe = built(asked.size)
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        note["parameters"] = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    with measured(stages, "LoRA file of kohya's names") as note:
        record = record_of(pipe, lora_sha256(lora_layers(pipe)))
        file = export_lora(pipe, record, asked.out / "lora.safetensors", overwrite=True)
        note |= {"layers": len(lora_layers(pipe)), "gb": round(file.stat().st_size / 1e9, 3)}
        note["check"] = check_export(file).ok
    with measured(stages, "guarded directory") as note:
        pipe.unet.fuse_lora()  # in place: a merged copy would need the UNet twice
        pipe.unet.unload_lora()
        export_directory(pipe, record_of(pipe), asked.out / "export", overwrite=True)
        size = sum(path.stat().st_size for path in (asked.out / "export").rglob("*") if path.is_file())
        note["gb"] = round(size / 1e9, 2)
    return stages


def built(size: str) -> StableDiffusionXLPipeline:
    tokenizer = sd21_tokenizer()
    return StableDiffusionXLPipeline(
        unet=filled(lambda: UNet2DConditionModel.from_config(config("unet", size))),
        vae=filled(lambda: AutoencoderKL.from_config(config("vae", size))),
        text_encoder=filled(lambda: CLIPTextModel(CLIPTextConfig(**config("text_encoder", size)))),
        text_encoder_2=filled(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2", size)))),
        tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=DDIMScheduler.from_config(
            sdxl_config("scheduler/scheduler_config.json"), clip_sample=False, set_alpha_to_one=False
        ), add_watermarker=False,
    )  # fmt: skip


def lora(asked: argparse.Namespace) -> dict[str, Any]:
    """One LoRA update of one image, on the directory that was shipped."""
    stages: dict[str, Any] = {}
    write_images(asked.out / "images")
    with measured(stages, "one LoRA update") as note:
        module, _ = fitted(asked, updates=1, base="export", lora=LoraOptions(rank=16))
        note["trained"] = sum(p.numel() for p in module.trained().values())
    return stages


def record_of(pipe: Any, weights: str = "") -> Record:
    """A record with a rule; its numbers are made up."""
    signal = float(pipe.scheduler.alphas_cumprod[TRANSITION])
    made_up = Estimate(value=0.0, low=0.0, high=0.1, level=0.95, n=30, method="made up")
    return Record(
        guidance=Guidance(transition=TRANSITION, sigma=((1 - signal) / signal) ** 0.5, before=0.0),
        risk=made_up, plain=made_up, alpha=0.1, delta=0.05, promise="", population="",
        metric=Metric(embedder="none", threshold=0.5, source="made up"),
        sampler=Sampler(
            scheduler="ddim", timesteps=TIMESTEPS, prediction_type="epsilon", resolution=PX, scale=SCALE
        ),
        seeds=(0,), base="random", weights_sha256=weights, dataset_sha256="0" * 64, versions={},
    )  # fmt: skip


def reload(asked: argparse.Namespace) -> dict[str, Any]:
    """The export in a process that shares nothing but files, sampled as a user would."""
    stages: dict[str, Any] = {}
    with measured(stages, "reload"):
        pipe = basinguard.load(
            asked.out / "export", dtype=torch.bfloat16, local_files_only=True, add_watermarker=False
        )  # fmt: skip
    with measured(stages, f"guarded sampling, {TIMESTEPS} steps") as note:
        words = "a photograph of an astronaut riding a horse"
        made = pipe(
            words, num_inference_steps=TIMESTEPS, guidance_scale=SCALE, generator=torch.Generator().manual_seed(0)
        )
        note["scales"] = [float(entry.scale[0]) for entry in last_trace(pipe)]
        note["unet_evals"] = sum(entry.unet_evals for entry in last_trace(pipe))
        note["image"] = list(made.images[0].size)
    return stages


if __name__ == "__main__":
    quiet_lightning()
    main()
