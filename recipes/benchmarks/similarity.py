"""Measures the offline descriptors' speed and what a match costs in time and memory.

Copy this file, do not import it. The pixels are random: neither the descriptor nor the search looks at content to
decide how much to compute. Decoding files is not part of it. Every figure is given by the clock and by processor time
(that of all threads added), because only the second one survives a machine that others use too.

    python recipes/benchmarks/similarity.py

Expected on 2 idle CPU cores: at least 200 images of 512 px a second; 1,000 samples against 10,000 images in under 2 s
and 500 MB. Time: about 10 seconds. Memory: about 1 GB. The published result is of one thread (`--threads 1`) on a
machine that some eight other processes used too (see its load average), where only processor time tells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from basinguard.similarity.embedder import Embedder, unit
from basinguard.similarity.matching import search
from basinguard.similarity.structure import Structure
from basinguard.similarity.structure_figure import StructureFigure

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path("recipes/results/bench_similarity.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    load = os.getloadavg()[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    matching = match_cost(args.repeats)  # first: peak memory only ever grows
    speeds = {side: images_per_second(side, Structure(), args.repeats) for side in (64, 256, 512)}
    figures = {side: images_per_second(side, StructureFigure(), args.repeats) for side in (64, 256, 512)}
    result = {
        "recipe": "bench_similarity",
        "embedder": Structure().name,
        "threads": args.threads,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
        "commit": commit,
        "load_average_before": load,
        "embed": speeds,
        "embed_figures": {"embedder": StructureFigure().name} | figures,
        "match_1000_against_10000": matching,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def images_per_second(side: int, embed: Embedder, repeats: int) -> dict:
    images = torch.rand(BATCH, 3, side, side)
    clock, processor = zip(*(seconds(lambda: embed(images)) for _ in range(repeats)), strict=True)
    return {
        "images_per_second": spread([BATCH / s for s in clock]),
        "images_per_processor_second": spread([BATCH / s for s in processor]),
    }


def match_cost(repeats: int) -> dict:
    """Both orientations of 1,000 samples against 10,000 embeddings; memory beyond what was there before, in MB."""
    before = peak_mb()
    gallery = unit(torch.randn(10_000, 1153))
    samples = unit(torch.randn(2_000, 1153))
    clock, processor = zip(*(seconds(lambda: search(samples, gallery)) for _ in range(repeats)), strict=True)
    extra = round(peak_mb() - before, 1)
    return {"seconds": spread(clock), "processor_seconds": spread(processor), "extra_memory_mb": extra}


def spread(values: Sequence[float]) -> dict:
    """The middle of several runs, and their ends."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
