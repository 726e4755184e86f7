"""What a budgeted probe takes of the training time, and what memory a probe needs beside training's own.

    OMP_NUM_THREADS=1 python recipes/benchmarks/budget.py --out recipes/results/bench_budget.json

Fine-tunes TinyWorld as `basinguard demo` does, 400 updates with a probe every 40 epochs (80 updates), under
`ProbePlan(budget="5%", budget_timesteps=8)`. The share is everything the callback does at the end of an epoch, pictures
and logging included, over the time trained since the probe before: over the run, and of the span whose share is
largest. The base model's probe is not charged and is told apart. Then, each in a process of its own, the peak resident
memory of 20 updates, and of a probe of 8 and of 24 captions.

Expected (`results/bench_budget.json`, one idle core): 4.5 % over the run and 5.1 % of the dearest span; the gap of 22
to 24 captions and one or two samples at every probe, so a risk at every probe, within 0.17 to 0.49 with the samples of
earlier ones. A probe's memory is training's (1.03 GB of 8 captions, 1.18 of 24, against 1.15).
Time: about 3 minutes on one idle core; 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from basinguard import ControlGroup, MemorizationGuard
from basinguard.core.provenance import versions
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.sessions.demo_run import demo_model
from basinguard.similarity.structure import Structure
from basinguard.tinyworld.demo_folder import write_demo_folder
from basinguard.tinyworld.tasks import TASKS
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.fit_cli import quiet_lightning

SCALE, TIMESTEPS, FEWER = 3.0, 16, 8  # 8 find the copies that 16 find: `recipes/results/probe_timesteps.json`


class Timed(MemorizationGuard):
    """The guard with a stop-watch: seconds inside it at the end of each epoch, and between those moments."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """The base model's probe."""
        start = time.monotonic()
        super().on_train_start(trainer, pl_module)
        self.left, self.base, self.spans = time.monotonic(), time.monotonic() - start, [[0.0, 0.0]]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: FineTune) -> None:
        """One probe, or none."""
        start = time.monotonic()
        super().on_train_epoch_end(trainer, pl_module)
        self.spans[-1][0] += start - self.left
        self.spans[-1][1] += time.monotonic() - start
        self.left = time.monotonic()
        if self.should_probe(trainer.current_epoch):
            self.spans.append([0.0, 0.0])


def fit(folder: Path, callbacks: list[pl.Callback], **stop: int) -> None:
    train, _ = write_demo_folder(folder / "data", TASKS["scenes"])
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder) if callbacks else False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **stop,
    )
    module = demo_model()
    trainer.fit(module, datamodule=ImageFolder(str(train), resolution=64, batch_size=16))


def share(folder: Path, epochs: int, every: int) -> dict[str, Any]:
    """Probe time over training time, for each probe and over the run."""
    _, heldout = write_demo_folder(folder / "data", TASKS["scenes"])
    controls = [json.loads(line)["text"] for line in (heldout / "metadata.jsonl").read_text().splitlines()]
    guard = Timed(
        ProbePlan(captions=12, seeds=2, timesteps=TIMESTEPS, scale=SCALE, budget="5%", budget_timesteps=FEWER),
        ControlGroup(controls),
        every_n_epochs=every,
    )
    fit(folder, [guard], max_epochs=epochs)
    spans = [(trained, probed) for trained, probed in guard.spans if trained]
    return {
        "trained_seconds": [round(trained, 2) for trained, _ in spans],
        "probe_seconds": [round(probed, 2) for _, probed in spans],
        "share_of_the_run": sum(probed for _, probed in spans) / sum(trained for trained, _ in spans),
        "largest_share_of_one_span": max(probed / trained for trained, probed in spans),
        "base_probe_seconds": round(guard.base, 1),
        "prices": {name: round(price, 4) for name, price in guard.run.guard.spending.account.prices.items()},
        "precision": {report.epoch: report.precision for report in guard.history[1:]},
        "risk": {report.epoch: str(report.samples.risk) for report in guard.history[1:]},
        "gap_excess": {report.epoch: str(report.gaps.excess) for report in guard.history[1:]},
    }


def peak(what: str, folder: Path) -> float:
    """Peak resident memory of this process in GB after 20 updates, or after a probe of so many captions."""
    if what == "training":
        fit(folder, [], max_steps=20)
    else:
        train, _ = write_demo_folder(folder / "data", TASKS["scenes"])
        images = ImageFolder(str(train), resolution=64)
        images.setup("peak")
        training = TrainingSet(images.all_pixels(), tuple(caption for _, caption in images.items))
        guard = Guard(training, Structure(), ProbePlan(int(what), 2, timesteps=TIMESTEPS, scale=SCALE))
        guard.measure(LatentModel(load_pipeline("tinyworld")), epoch=-1, train_step=0)
    return peak_gb()


def peak_gb() -> float:
    """Of this program alone: what `getrusage` tells begins with the memory of the one that started it."""
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=Path("runs/bench_budget.json"))
    ask.add_argument("--epochs", type=int, default=200)
    ask.add_argument("--every", type=int, default=40)
    ask.add_argument("--peak", help="measure one memory peak in this process (used by the recipe)")
    args = ask.parse_args()
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        if args.peak:
            print(peak(args.peak, Path(folder)))
            return
        result: dict[str, Any] = share(Path(folder), args.epochs, args.every)
    command = [sys.executable, __file__, "--peak"]
    result["peak_gb"] = {
        what: float(subprocess.run([*command, what], capture_output=True, text=True, check=True).stdout.split()[-1])
        for what in ("training", "8", "24")
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result |= {
        "command": "python recipes/benchmarks/budget.py",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # well above the number of cores: training and probes are both slower
        "versions": versions(),
        "commit": commit,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    print(json.dumps(result, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
