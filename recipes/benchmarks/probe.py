"""What a probe costs against the plain sweep it replaces, and whether it finds the same exits.

    OMP_NUM_THREADS=1 python recipes/benchmarks/probe.py --model toy
    OMP_NUM_THREADS=1 python recipes/benchmarks/probe.py --model tinyworld --out recipes/results/bench_probe.json

The plain sweep samples every (caption, seed) once for every grid timestep as the transition. Its cost in network
evaluations is counted twice: "stock" (two evaluations at every step, as pipelines do) and "thrifty" (one where the
scale is 0). Exits agree when the smallest timestep that reproduces the image is the same one. Sweep outcomes for that
are taken from branches off one shared trajectory, each run to its end and looked at; the time of the plain sweep is
measured on `--timed` of its candidates, spread over the grid and interleaved with repeats of the probe, and scaled to
all of them. Both sides use the same thrifty sampler, batch size, decoder and embedder, so the time ratio is against
the thrifty sweep. `tinyworld` is fine-tuned for `--updates` first, as in `basinguard demo`, so that it memorizes.

Wanted: at least 20 times fewer evaluations than stock, at least 12 times less time, at least 99 % of exits the same.
Found (`results/bench_probe.json`): the toy meets all three (37, 14, 64 of 64 and 512 of 512). TinyWorld does not:
12.6 times fewer, 8.3 times less time, 61 of 64 exits the same; with one check of each pair 8.9 times fewer and 63 of
64. Why: copies and others overlap in latent distance there, so no branch may be stopped early; guesses at exits are
rough; and the outcomes of 3 of the 64 pairs are not ordered (plain CFG does not copy, guidance that begins later
does), which no search that skips candidates sees for certain. A search that knew every exit would need 21 times
fewer, and 14 once it tried those three everywhere: 20 times and 99 % exclude each other there.
Time: toy half a minute; tinyworld with 16 captions, 4 seeds and 50 timesteps about 50 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basinguard.basin.early_decision import Anchors
from basinguard.basin.exit_search import CopyTest, ExitSearch
from basinguard.basin.trajectories import GuidedModel, Pairs, pairs_of, run_branch, run_trunk
from basinguard.core import stats
from basinguard.core.provenance import versions
from basinguard.core.report_parts import Exit
from basinguard.diffusion.sampling import final, sample_trajectory
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.guidance.core import SwitchAt

FIRST_SEED = 30_000


def toy(args: argparse.Namespace) -> tuple[GuidedModel, Pairs, CopyTest, Anchors]:
    """The closed-form memorizer of 64 points."""
    memorizer = gaussian_memorizer(count=64, dim=32, leak=1e-3)
    probe = GuidedModel(memorizer, memorizer.schedule, memorizer.schedule.grid(args.timesteps), 7.5, args.chunk)
    pairs = pairs_of(args.captions, range(FIRST_SEED, FIRST_SEED + args.seeds), args.seeds, (32,))
    anchors = Anchors(memorizer.points[: args.captions], torch.arange(args.captions))
    return probe, pairs, lambda x, p: memorizer.nearest(x) == p, anchors


def tinyworld(args: argparse.Namespace) -> tuple[GuidedModel, Pairs, CopyTest, Anchors]:
    """TinyWorld, fine-tuned on the demo's 32 images until it copies."""
    import lightning.pytorch as pl

    from basinguard.guard.training_set import TrainingSet
    from basinguard.pipelines.latent_model import LatentModel
    from basinguard.sessions.demo_run import demo_model
    from basinguard.similarity.copy_detector import CopyDetector
    from basinguard.similarity.structure import Structure
    from basinguard.tinyworld.demo_folder import write_demo_folder
    from basinguard.training.data import ImageFolder
    from basinguard.training.fit_cli import quiet_lightning

    quiet_lightning()
    with tempfile.TemporaryDirectory() as scratch:
        data = ImageFolder(str(write_demo_folder(Path(scratch))[0]), resolution=64, batch_size=16)
        tuned = demo_model()
        pl.Trainer(
            max_steps=args.updates, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False,
        ).fit(tuned, datamodule=data)  # fmt: skip
        training = TrainingSet(data.all_pixels(), tuple(text for _, text in data.items))
    model, copy_detector = LatentModel(tuned.eval().pipe), CopyDetector(training.images, training.captions, Structure())
    rows = list(range(0, 2 * args.captions, 2))[: args.captions]
    captions = [training.captions[i] for i in rows]
    probe = GuidedModel(model.denoiser(captions), model.schedule, model.schedule.grid(args.timesteps), 3.0, args.chunk)
    pixels = training.images[rows]
    anchors = Anchors(model.encode(torch.cat([pixels, pixels.flip(-1)])), torch.arange(len(rows)).repeat(2))

    def judge(latents: Tensor, prompt: Tensor) -> Tensor:
        unique, row = torch.unique(latents, dim=0, return_inverse=True)
        matches = copy_detector.matches(model.decode(unique))
        return copy_detector.is_own_copy([matches[k] for k in row.tolist()], [captions[k] for k in prompt.tolist()])

    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    return probe, pairs_of(len(rows), seeds, args.seeds, model.latent_shape), judge, anchors


def outcomes(probe: GuidedModel, pairs: Pairs, judge: CopyTest) -> Tensor:
    """Outcome of every candidate, run to the end and looked at, [T, N]."""
    stem, rows, outcomes = run_trunk(probe, pairs), torch.arange(len(pairs)), []
    for index in range(len(probe.timesteps)):
        at = torch.full_like(rows, index)
        outcomes.append(judge(run_branch(probe, stem.at(rows, at), pairs.prompt, at), pairs.prompt))
    return torch.stack(outcomes)


def plain(probe: GuidedModel, pairs: Pairs, judge: CopyTest, index: int) -> float:
    """Seconds that one candidate of the plain sweep takes."""
    begin = time.perf_counter()
    rule = SwitchAt(float(probe.timesteps[index]), 0.0, probe.scale)
    args = (probe.evaluate, pairs.noise, pairs.prompt, probe.schedule, probe.timesteps, rule, probe.solver)
    judge(final(sample_trajectory(*args)), pairs.prompt)
    return time.perf_counter() - begin


def agreement(exits: list[Exit], swept: Tensor, timesteps: Tensor) -> list[bool]:
    same = []
    for exit_point, column in zip(exits, swept.T, strict=True):
        hits = column.nonzero().squeeze(1)
        same.append(exit_point.timestep == (float(timesteps[hits[-1]]) if len(hits) else None))
    return same


def least(swept: Tensor, seeds: int) -> dict[str, int]:
    """Evaluations of a search that knew every exit: the shared trunks, plain CFG, and the two branches around each.

    Branches run to their ends. Then the same with every pair tried everywhere whose outcomes are not ordered, which
    nothing else shows for certain.
    """
    count, n = swept.shape
    branch = 2 * (count - torch.arange(count + 1))
    last = torch.where(swept.any(0), count - 1 - swept.flip(0).int().argmax(0), -1)
    bisected = torch.where(last >= 0, branch[last] + branch[last + 1], 0)
    strange = (swept[1:] & ~swept[:-1]).any(0)
    fixed = count * seeds + 2 * count * n
    swept_too = torch.where(strange, branch.sum(), bisected)
    return {
        "no_pair_swept": fixed + int(bisected.sum()),
        "pairs_that_are_not_ordered_swept": fixed + int(swept_too.sum()),
    }


@torch.no_grad()
def compare(probe: GuidedModel, pairs: Pairs, judge: CopyTest, anchors: Anchors, timed: int) -> dict[str, Any]:
    """Both ways on the same pairs."""
    count, n = len(probe.timesteps), len(pairs)
    candidates = [round((k + 0.5) * count / timed) for k in range(timed)]
    probe_seconds, plain_seconds, exits, evals = [], [], [], 0
    for k, index in enumerate(candidates):
        plain_seconds.append(plain(probe, pairs, judge, min(index, count - 1)))
        if k in (0, timed // 2, timed - 1):
            begin = time.perf_counter()
            before = probe.count.total
            exits = ExitSearch(probe, pairs, judge, anchors=anchors).exits()
            evals = probe.count.total - before
            probe_seconds.append(time.perf_counter() - begin)
    swept = outcomes(probe, pairs, judge)
    same = agreement(exits, swept, probe.timesteps)
    before = probe.count.total
    checked = ExitSearch(probe, pairs, judge, anchors=anchors).exits(order_checks=1)
    checked_evals = probe.count.total - before
    stock, thrifty = count * 2 * count * n, sum(i + 2 * (count - i) for i in range(count)) * n
    sweep_seconds = statistics.mean(plain_seconds) * count
    return {
        "pairs": n,
        "memorized": sum(exit_point.timestep is not None for exit_point in exits),
        "not_ordered_in_the_sweep": int((swept[1:] & ~swept[:-1]).any(0).sum()),
        "evals": evals,
        "evals_stock_sweep": stock,
        "evals_thrifty_sweep": thrifty,
        "fewer_than_stock": round(stock / evals, 1),
        "fewer_than_stock_if_exits_were_known": {
            name: round(stock / cost, 1) for name, cost in least(swept, len(pairs.seed.unique())).items()
        },
        "fewer_than_thrifty": round(thrifty / evals, 1),
        "seconds": [round(s, 2) for s in probe_seconds],
        "seconds_sweep_scaled": round(sweep_seconds, 1),
        "seconds_of_timed_candidates": [round(s, 2) for s in plain_seconds],
        "faster_than_thrifty": round(sweep_seconds / statistics.median(probe_seconds), 1),
        "same_exits": stats.rate(same, pairs.prompt).model_dump(),
        "with_one_check": {
            "fewer_than_stock": round(stock / checked_evals, 1),
            "same_exits": stats.rate(agreement(checked, swept, probe.timesteps), pairs.prompt).model_dump(),
        },
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", choices=("toy", "tinyworld"), default="toy")
    ask.add_argument("--captions", type=int, default=16)
    ask.add_argument("--seeds", type=int, default=4)
    ask.add_argument("--timesteps", type=int, default=50)
    ask.add_argument("--updates", type=int, default=400)
    ask.add_argument("--timed", type=int, default=5)
    ask.add_argument("--chunk", type=int, default=64)
    ask.add_argument("--out", type=Path)
    args = ask.parse_args()
    make = {"toy": toy, "tinyworld": tinyworld}[args.model]
    result = {
        "model": args.model,
        "grid": args.timesteps,
        "captions": args.captions,
        "seeds": args.seeds,
        "updates": args.updates if args.model == "tinyworld" else None,
        **compare(*make(args), args.timed),
        "command": f"python recipes/benchmarks/probe.py --model {args.model} --captions {args.captions} "
        f"--seeds {args.seeds} --timesteps {args.timesteps} --chunk {args.chunk}",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],  # well above the number of cores: times are noisy, counts are not
        "versions": versions(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    for key, value in result.items():
        print(f"{key:30} {value}")
    if args.out:
        published = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        size = f"{args.model}, {args.captions} x {args.seeds}"
        args.out.write_text(json.dumps({**published, size: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
