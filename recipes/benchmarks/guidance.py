"""What a rule costs at sampling time, as a ratio to the same stock pipeline with plain CFG.

    python recipes/benchmarks/guidance.py --model plugin/basinguard/tinyworld/model --repeats 15
    python recipes/benchmarks/guidance.py --model sd21 --repeats 5 --out runs/bench_sd21.json
    python recipes/benchmarks/guidance.py --model path/to/a/pipeline --device cuda --steps 50
    python recipes/benchmarks/guidance.py --model sd21 --lora 16 --only cfg "by timestep"

All variants run in turn inside every repeat, in an order that rotates, and each is divided by plain CFG of the same
repeat; the table gives the median ratio with the lowest and highest, the same ratio in CPU time (which other work on
the machine moves less; set OMP_NUM_THREADS=1 for it), and the peak memory of two steps, weights included. `tiny` (of
TinyWorld's size) and `sd21` (the UNet of full Stable Diffusion 2.1 size at 256 px, 866 M parameters, bf16) are randomly
initialised: a ratio of times does not depend on what the weights say. Wanted: og and dtp <= 1.02, stp at 600 <= 0.83
(16 of 20 evaluations make 0.80), memory <= +1 %.
Measured at full size (`results/bench_guidance_sd21.json`, one core, n = 5): og 1.020 [0.951, 1.052], dtp 0.996
[0.974, 1.027], og+dtp 1.007 [0.958, 1.053], memory +0.0 %, `wen` 2.84 [2.80, 2.93] (lowest and highest). At batch 1 stp
costs 0.893 [0.877, 0.918] and misses 0.83: on this processor one row costs 0.73 of two, because both share the reading
of the weights. At batch 4 it costs 0.818 [0.811, 0.843] of the CPU time (`results/bench_guidance_sd21_batch4.json`,
n = 3, on a busy machine), and on TinyWorld at batch 4 0.819 (`results/bench_guidance_tinyworld_batch4.json`).
Time: tiny under a minute, sd21 about 10 minutes on 2 CPU cores and 4 GB.

`wen` is the prompt optimisation of Wen et al., arXiv 2407.21720: Adam (lr 0.05) on the prompt embedding lowers the
first step's magnitude for 10 iterations, their maximum, and plain CFG follows; `wen 1` stops after one. With `--lora`
the UNet carries a random LoRA on its attention, unmerged, in every variant, and "by timestep" has its strength follow
the timestep.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from basinguard.guidance.core import SwitchAt
from basinguard.guidance.dynamic import SwitchAfter
from basinguard.guidance.strength import StrengthSchedule, scheduled
from basinguard.pipelines.protect import last_trace, protect, unprotect

RULES = {
    "cfg": None,
    "cfg again": None,
    "cfg by a rule": SwitchAt(999, after=None),
    "stp": SwitchAt(600, 0.0, None),
    "og": SwitchAt(600, -2.0, None),
    "dtp": SwitchAfter(before=0.0, after=None),
    "og+dtp": SwitchAfter(before=-2.0, after=None),
}
STRENGTHS = StrengthSchedule((700.0, 300.0), (0.3, 0.6, 1.0))
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
    if getattr(pipe.unet, "peft_config", None):
        runs["by timestep"] = lambda: _sample_by_timestep(pipe, given)
    return runs


def _sample_by_timestep(pipe: StableDiffusionPipeline, given: dict) -> None:
    with scheduled(pipe.unet, STRENGTHS):
        pipe(**given)


def _sample(pipe: StableDiffusionPipeline, given: dict, rule: object) -> int | None:
    if rule is None:
        pipe(**given)
        return None
    protect(pipe, rule)(**given)
    evaluations = sum(entry.unet_evals for entry in last_trace(pipe))
    unprotect(pipe)
    return evaluations


def measured(run: Callable[[], object], cuda: bool) -> tuple[float, float]:
    """Seconds by the wall clock, and of CPU time."""
    start, busy = time.perf_counter(), time.process_time()
    run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of all living tensors made inside; the resident set hides them behind the allocator's reserve.

    What a kernel allocates and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.counted: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.counted:
                storage = tensor.untyped_storage()
                self.counted.add(storage)
                self.change(storage.nbytes())
                weakref.finalize(storage, self.change, -storage.nbytes())
        return made

    def change(self, size: int) -> None:
        """Adds the bytes of a tensor that was made, or takes off those of one that died."""
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_bytes(pipe: StableDiffusionPipeline, run: Callable[[], object], cuda: bool) -> float:
    """Weights and the highest sum of living tensors during `run`, in bytes."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    with TensorBytes() as count:
        run()
    return count.peak + sum(weight.nbytes for weight in pipe.unet.parameters())


def spread(values: list[float]) -> dict[str, float | list[float] | None]:
    """Median, its 95 % interval by order statistics (none below 6 values), lowest and highest."""
    interval = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    ends = [interval.low, interval.high] if math.isfinite(interval.low + interval.high) else None
    summary = {"median": statistics.median(values), "interval": ends, "low": min(values), "high": max(values)}
    return summary | {"n": len(values)}


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip()


def bench(
    model: str, device: str, steps: int, batch: int, repeats: int, only: list[str], warm_up: bool, lora: int = 0
) -> dict:
    load, pipe = os.getloadavg()[0], build(model, device)
    if lora:
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        pipe.unet.add_adapter(LoraConfig(r=lora, target_modules=targets, init_lora_weights="gaussian"))
    pipe.set_progress_bar_config(disable=True)
    runs = {name: run for name, run in variants(pipe, inputs(pipe, batch, steps)).items() if name in only or not only}
    names, taken = list(runs), {name: [] for name in runs}
    for name in names if warm_up else []:
        runs[name]()
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            taken[name].append(measured(runs[name], device == "cuda"))
    wall, busy = ({name: [row[i] for row in taken[name]] for name in names} for i in range(2))
    short = variants(pipe, inputs(pipe, batch, 2))
    memory = {name: peak_bytes(pipe, short[name], device == "cuda") for name in names}
    rows = {
        name: {
            "ratio": spread([own / cfg for own, cfg in zip(wall[name], wall["cfg"], strict=True)]),
            "cpu_ratio": spread([own / cfg for own, cfg in zip(busy[name], busy["cfg"], strict=True)]),
            "seconds": spread(wall[name]),
            "extra_memory": memory[name] / memory["cfg"] - 1,
        }
        for name in names
    }
    about = {"torch": torch.__version__, "diffusers": diffusers.__version__, "threads": torch.get_num_threads()}
    about |= {
        "machine": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    }
    about |= {"load_average": [load, os.getloadavg()[0]], "commit": commit(), "command": shlex.join(sys.argv)}
    about |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return {"model": model, "device": device, "steps": steps, "batch": batch, "lora": lora, "rows": rows, **about}


def show(result: dict) -> None:
    print(f"{result['model']} on {result['device']}, {result['steps']} steps, batch {result['batch']}")
    print(f"{'':14}{'wall / cfg':>22}{'CPU / cfg':>22}{'seconds':>10}{'memory':>9}")
    for name, row in result["rows"].items():
        ratios = "".join(f"{said(row[kind]):>22}" for kind in ("ratio", "cpu_ratio"))
        print(f"{name:14}{ratios}{row['seconds']['median']:10.3f}{row['extra_memory']:+9.1%}")


def said(ratio: dict) -> str:
    """A median with its interval; with lowest and highest where there are too few values for one."""
    low, high = ratio["interval"] or (ratio["low"], ratio["high"])
    return f"{ratio['median']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, sd21, or a pipeline's directory or hub id")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[], help="some of the variants; cfg must be among them")
    parser.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="of a random LoRA, unmerged, in every variant"
    )
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    chosen = parser.parse_args()
    numbers = {key: value for key, value in vars(chosen).items() if key != "out"}
    result = bench(**numbers)
    show(result)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(result, indent=2) + "\n")
