"""What a rule costs at sampling time, as a ratio to the same stock pipeline with ordinary CFG.

    python recipes/bench_guidance.py --model tiny --repeats 30
    python recipes/bench_guidance.py --model sd21 --repeats 5 --out runs/bench_sd21.json
    python recipes/bench_guidance.py --model path/to/a/pipeline --device cuda --steps 50

All variants run in turn inside every repeat, in an order that rotates, and each is divided by ordinary CFG of the same
repeat; the table gives the median ratio with the lowest and highest, and the peak memory. `tiny` and `sd21` (the UNet
of full Stable Diffusion 2.1 size at 256 px, 866 M parameters, bf16) are randomly initialised: a ratio of times does
not depend on what the weights say. Expected: og and dtp <= 1.02, stp at 600 <= 0.83 (16 of 20 evaluations = 0.80).
Time: tiny under a minute, sd21 about 10 minutes on 2 CPU cores and 4 GB.

`wen` is the prompt optimisation of Wen et al., arXiv 2407.21720: Adam (lr 0.05) on the prompt embedding lowers the
first step's magnitude for 10 iterations, their maximum, and ordinary CFG follows; `wen 1` stops after one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from basinguard.adapters.pipelines import last_trace, protect, unprotect
from basinguard.guidance import SwitchAfter, SwitchAt

RULES = {
    "cfg": None,
    "cfg again": None,
    "cfg by a rule": SwitchAt(999, after=None),
    "stp": SwitchAt(600, 0.0, None),
    "og": SwitchAt(600, -2.0, None),
    "dtp": SwitchAfter(before=0.0, after=None),
    "og+dtp": SwitchAfter(before=-2.0, after=None),
}
SIZES = {
    "tiny": {
        "block_out_channels": (48, 96, 96),
        "cross_attention_dim": 64,
        "attention_head_dim": 16,
        "sample_size": 16,
    },
    "sd21": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "sample_size": 32,
    },
}


def build(model: str, device: str) -> StableDiffusionPipeline:
    if model not in SIZES:
        return StableDiffusionPipeline.from_pretrained(model, safety_checker=None).to(device)
    shape, blocks = SIZES[model], len(SIZES[model]["block_out_channels"]) - 1
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **shape,
        use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D",) * blocks + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * blocks,
        norm_num_groups=16,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(),
        unet=unet.to(torch.bfloat16 if model == "sd21" else torch.float32),
        scheduler=DDIMScheduler(**betas, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe.to(device)


def inputs(pipe: StableDiffusionPipeline, batch: int, steps: int) -> dict:
    config, like = pipe.unet.config, {"device": pipe.device, "dtype": pipe.unet.dtype}
    size = config.sample_size
    return {
        "prompt_embeds": torch.randn(batch, 77, config.cross_attention_dim, **like),
        "negative_prompt_embeds": torch.randn(batch, 77, config.cross_attention_dim, **like),
        "latents": torch.randn(batch, config.in_channels, size, size, **like),
        "height": size * pipe.vae_scale_factor,
        "width": size * pipe.vae_scale_factor,
        "num_inference_steps": steps,
        "guidance_scale": 7.5,
        "output_type": "latent",
    }


def optimise_prompt(pipe: StableDiffusionPipeline, given: dict, iterations: int) -> dict:
    """Wen et al.: gradient descent on the prompt embedding, through the whole UNet, at the first timestep."""
    pipe.scheduler.set_timesteps(given["num_inference_steps"])
    timestep, x = pipe.scheduler.timesteps[0], given["latents"]
    prompt = given["prompt_embeds"].clone().requires_grad_(True)
    adam = torch.optim.Adam([prompt], lr=0.05)
    pipe.unet.requires_grad_(False)
    with torch.no_grad():
        uncond = pipe.unet(x, timestep, given["negative_prompt_embeds"]).sample
    for _ in range(iterations):
        magnitude = (pipe.unet(x, timestep, prompt).sample - uncond).float().norm()
        adam.zero_grad()
        magnitude.backward()
        adam.step()
    return given | {"prompt_embeds": prompt.detach()}


def variants(pipe: StableDiffusionPipeline, given: dict) -> dict[str, Callable[[], object]]:
    runs = {name: (lambda rule=rule: _sample(pipe, given, rule)) for name, rule in RULES.items()}
    for name, iterations in (("wen 1", 1), ("wen", 10)):
        runs[name] = lambda iterations=iterations: _sample(pipe, optimise_prompt(pipe, given, iterations), None)
    return runs


def _sample(pipe: StableDiffusionPipeline, given: dict, rule: object) -> int | None:
    if rule is None:
        pipe(**given)
        return None
    protect(pipe, rule)(**given)
    evaluations = sum(seen.unet_evals for seen in last_trace(pipe))
    unprotect(pipe)
    return evaluations


def measured(run: Callable[[], object], cuda: bool) -> tuple[float, float]:
    """Seconds, and peak memory in MiB above nothing (device memory, or resident set on the CPU)."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20
    seconds = time.perf_counter() - start
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return seconds, int(line.split()[1]) / 1024


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def bench(model: str, device: str, steps: int, batch: int, repeats: int) -> dict:
    pipe = build(model, device)
    pipe.set_progress_bar_config(disable=True)
    runs = variants(pipe, inputs(pipe, batch, steps))
    names, seconds, memory = list(runs), {name: [] for name in runs}, {name: [] for name in runs}
    for run in runs.values():
        run()
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            took, peak = measured(runs[name], device == "cuda")
            seconds[name].append(took)
            memory[name].append(peak)
    ratio = {name: [own / cfg for own, cfg in zip(seconds[name], seconds["cfg"], strict=True)] for name in names}
    extra = {name: statistics.median(memory[name]) / statistics.median(memory["cfg"]) - 1 for name in names}
    rows = {
        name: {"ratio": spread(ratio[name]), "seconds": spread(seconds[name]), "extra_memory": extra[name]}
        for name in names
    }
    about = {"torch": torch.__version__, "diffusers": diffusers.__version__, "threads": torch.get_num_threads()}
    about |= {"machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor()}
    return {"model": model, "device": device, "steps": steps, "batch": batch, "rows": rows, **about}


def show(result: dict) -> None:
    print(f"{result['model']} on {result['device']}, {result['steps']} steps, batch {result['batch']}")
    print(f"{'':16}{'ratio to cfg':>14}{'lowest':>9}{'highest':>9}{'seconds':>10}{'memory':>9}")
    for name, row in result["rows"].items():
        ratio = row["ratio"]
        numbers = f"{ratio['median']:14.3f}{ratio['low']:9.3f}{ratio['high']:9.3f}{row['seconds']['median']:10.3f}"
        print(f"{name:16}{numbers}{row['extra_memory']:+9.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, sd21, or a pipeline's directory or hub id")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    chosen = parser.parse_args()
    result = bench(chosen.model, chosen.device, chosen.steps, chosen.batch, chosen.repeats)
    show(result)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(result, indent=2) + "\n")
