"""Two questions about data: what do cached latents save, and does the training step ever wait for its images?

    python recipes/benchmarks/latents.py --out recipes/results/latents.json
    python recipes/benchmarks/latents.py --model path/to/sd21 --resolution 512 --batch 4 --images 64

Cache: updates with every image encoded anew and updates from the cache run in turn in one process, and the ratio of
each pair is taken; the table gives the median with the lowest and highest. What can be gained is the encoders' share of
an update; for Stable Diffusion 2.1 it is computed, in floating-point operations. Loading: JPEGs of 512 px are read,
resized and cropped by `ImageFolder` with `--workers` processes while the step takes as long as `--step` says, and the
share of time spent waiting is told; beside it the processor time of an image, which other work on the machine moves
less: a step of `batch * time / workers` seconds is the shortest that is never kept waiting.
Time: about 3 minutes on one idle core, 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from basinguard.pipelines.architecture import sd21_config
from basinguard.pipelines.lora import UNET_TARGETS, add_lora
from basinguard.tinyworld.scenes import all_captions, draw_scene
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import MemoryOptions, ReadingOptions
from basinguard.training.memory_footprint import configs_of, empty_parts


def write_images(folder: Path, count: int, side: int, kind: str) -> Path:
    folder.mkdir()
    for number, caption in enumerate(all_captions()[:count]):
        scene = draw_scene(caption, seed=number).resize((side * 5 // 4, side), Image.Resampling.BICUBIC)
        scene.save(folder / f"{number}.{kind}", quality=92)
        (folder / f"{number}.txt").write_text(str(caption))
    return folder


def update(model: FineTune, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    """Seconds of one update."""
    start = time.perf_counter()
    optimizer.zero_grad()
    model.loss(batch).backward()
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cache(asked: argparse.Namespace, folder: Path) -> dict:
    """Ratio of an update that encodes to one from the cache."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = ImageFolder(
        str(folder), resolution=asked.resolution, batch_size=asked.batch, reading=ReadingOptions(keep_in_memory=True)
    )
    batches = [{**b, "pixel_values": b["pixel_values"].to(device)} for b in images.train_dataloader()]
    models = {cached: FineTune(asked.model, memory=MemoryOptions(cache=cached)).to(device) for cached in (False, True)}
    optimizers = {cached: torch.optim.AdamW(model.trained().values()) for cached, model in models.items()}
    for batch in batches:  # the first epoch fills the cache
        update(models[True], optimizers[True], batch)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(asked.repeats):
        for cached in (False, True) if turn % 2 else (True, False):
            seconds[cached].append(update(models[cached], optimizers[cached], batches[turn % len(batches)]))
    ratios = sorted(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
    return {
        "model": asked.model, "resolution": asked.resolution, "batch": asked.batch, "pairs": len(ratios),
        "seconds_encoding": statistics.median(seconds[False]), "seconds_cached": statistics.median(seconds[True]),
        "ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1],
    }  # fmt: skip


def computed(rows: int = 4, side: int = 512) -> dict:
    """Share of the encoders in a LoRA update of Stable Diffusion 2.1, in floating-point operations."""
    model = empty_parts(configs_of(sd21_config))
    for part in model.values():
        part.requires_grad_(False)
    add_lora(model["unet"], rank=16, alpha=16, dropout=0, targets=UNET_TARGETS)
    x, words = torch.empty(rows, 4, side // 8, side // 8, device="meta"), torch.empty(rows, 77, 1024, device="meta")
    with FlopCounterMode(display=False) as update:
        model["unet"](x, torch.zeros(rows, device="meta"), words, return_dict=False)[0].sum().backward()
    with FlopCounterMode(display=False) as encoders, torch.no_grad():
        model["vae"].encode(torch.empty(rows, 3, side, side, device="meta"))
        model["text_encoder"](torch.zeros(rows, 77, dtype=torch.int64, device="meta"))
    ratio = 1 + encoders.get_total_flops() / update.get_total_flops()
    return {
        "model": "Stable Diffusion 2.1", "px": side, "batch": rows, "update_tflop": update.get_total_flops() / 1e12,
        "encoders_tflop": encoders.get_total_flops() / 1e12, "most_ratio": ratio,
    }  # fmt: skip


def reading(folder: Path) -> dict:
    """Processor time of one image: read, decoded, resized, cropped."""
    images = ImageFolder(str(folder), resolution=512, batch_size=4)
    start = time.process_time()
    count = sum(len(batch["caption"]) for batch in images.train_dataloader())
    return {"images": count, "cpu_seconds_per_image": (time.process_time() - start) / count}


def loading(asked: argparse.Namespace, folder: Path) -> list[dict]:
    """Share of an epoch spent waiting for images, for steps of several lengths."""
    rows = []
    for step in asked.step:
        images = ImageFolder(str(folder), resolution=512, batch_size=4, num_workers=asked.workers)
        images.setup("fit")
        rows.append({"step_seconds": step, "workers": asked.workers, **waited(images.train_dataloader(), step)})
    return rows


def waited(loader: DataLoader, step: float) -> dict:
    """The step is a sleep: it takes no core, as an update on a GPU does not."""
    waiting, start = 0.0, time.perf_counter()
    batches = iter(loader)
    next(batches)  # workers start, as they do once a run
    started = time.perf_counter()
    while True:
        time.sleep(step)
        asked = time.perf_counter()
        if next(batches, None) is None:
            break
        waiting += time.perf_counter() - asked
    whole = time.perf_counter() - started
    return {"waiting_share": waiting / whole, "epoch_seconds": whole, "first_batch_seconds": started - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tinyworld")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--step", type=float, nargs="+", default=[0.2, 0.1, 0.05])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small = write_images(Path(folder) / "small", asked.images, asked.resolution, "png")
        large = write_images(Path(folder) / "large", asked.images, 512, "jpg")
        result = {
            "cache": cache(asked, small),
            "computed": computed(),
            "reading": reading(large),
            "loading": loading(asked, large),
        }
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result |= {
        "command": "python recipes/benchmarks/latents.py", "commit": revision, "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
