"""Do probes under a budget see what probes without one see, and when? Seven runs, live.

    OMP_NUM_THREADS=1 python recipes/benchmarks/budgeted_runs.py --art package

`package` is the unpacked `npm pack emoji-datasource-google@16`.

Fine-tunes TinyWorld twice on each set of images, 400 updates with a probe every 80, to the same weights: probes change
nothing in training. Once under `ProbePlan(budget="5%", budget_timesteps=8)`, once with 24 samples of 16 timesteps at
every probe. Told: what each budgeted probe took of the time trained since the one before, whether it has a risk, and
the first probe at which the verdict is that plain CFG copies more than alpha = 0.1, surely (`Verdict.breaches`), and
at all. A benchmark that was stopped goes on. Its stop-watch is that of `budget.py`.

Expected: bench_budgeted_runs.json under recipes/results. Time: 6 minutes a set on one idle core; 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from budget import Timed
from lightning.pytorch.loggers import TensorBoardLogger

from basinguard import ControlGroup
from basinguard.core.provenance import versions
from basinguard.core.report import Report
from basinguard.guard.plan import ProbePlan
from basinguard.guard.verdict import LEVELS, verdict_on
from basinguard.sessions.demo_run import captions_of
from basinguard.tinyworld.demo_folder import write_demo_folder
from basinguard.tinyworld.tasks import TASKS, art
from basinguard.training.data import ImageFolder
from basinguard.training.finetune import FineTune
from basinguard.training.finetune_options import MemoryOptions, OptimizerOptions
from basinguard.training.fit_cli import quiet_lightning

RUNS = {  # by name: task and seed of the training's noise
    "ink": ("ink", 0),
    "ink, seed 1": ("ink", 1),
    "scenes": ("scenes", 0),
    "neon": ("neon", 0),
    "brick": ("brick", 0),
    "subject": ("subject", 0),
    "art": ("art", 0),
}
UNLIMITED = ProbePlan(captions=12, seeds=2, timesteps=16, scale=3.0)
BUDGETED = ProbePlan(captions=12, seeds=2, timesteps=16, scale=3.0, budget="5%", budget_timesteps=8)
RATES = {"art": 8e-4}  # with 4e-4 emoji are barely learnt in so many updates
ALPHA, EPOCHS, EVERY = 0.1, 200, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--art", type=Path, help="the unpacked emoji package, for the run art")
    parser.add_argument("--out", type=Path, default=Path("recipes/results/bench_budgeted_runs.json"))
    args = parser.parse_args()
    quiet_lightning()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}}
    for name in args.runs:
        if name not in result["runs"]:
            task, seed = RUNS[name]
            result["runs"][name] = run(art(args.art) if task == "art" else TASKS[task], seed)
            result |= {"together": together(list(result["runs"].values()))} | provenance()
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            print(name, json.dumps(result["runs"][name], indent=1), flush=True)


def run(task: Any, seed: int) -> dict[str, Any]:
    """One training under both guards, and what each of them saw."""
    budgeted, unlimited = (fit(task, seed, plan) for plan in (BUDGETED, UNLIMITED))
    shares = [round(probed / trained, 4) for trained, probed in budgeted.spans if trained]
    reports = budgeted.history[1:]
    return {
        "shares_of_the_spans": shares,
        "share_of_the_run": round(sum(p for _, p in budgeted.spans) / sum(t for t, _ in budgeted.spans), 4),
        "samples": [report.samples.own_risk.n if report.samples.own_risk else 0 for report in reports],
        "risk": {report.epoch: str(report.samples.risk) for report in reports},
        "risk_without_budget": {report.epoch: str(report.samples.risk) for report in unlimited.history[1:]},
        "probes_without_risk": sum(report.samples.risk is None for report in reports),
        "breach": {"budgeted": breach(budgeted.history), "without budget": breach(unlimited.history)},
        "above_alpha": {
            "budgeted": breach(budgeted.history, surely=False),
            "without budget": breach(unlimited.history, surely=False),
        },
    }


def fit(task: Any, seed: int, plan: ProbePlan) -> Timed:
    """A training that a guard of this plan watched."""
    with tempfile.TemporaryDirectory() as place:
        train, heldout = write_demo_folder(Path(place), task)
        guard = Timed(plan, ControlGroup(captions_of(heldout)), every_n_epochs=EVERY)
        trainer = pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", logger=TensorBoardLogger(place), callbacks=[guard],
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        module = FineTune(
            "tinyworld", "full", seed=seed, memory=MemoryOptions(cache=True),
            optimizer=OptimizerOptions(learning_rate=RATES.get(task.name, 4e-4)),
        )  # fmt: skip
        trainer.fit(module, datamodule=ImageFolder(str(train), resolution=64, batch_size=16))
    return guard


def breach(history: list[Report], surely: bool = True) -> int | None:
    """Number of the first probe after the base model's whose verdict is a breach; None where none is."""
    verdicts = (verdict_on(history[: probe + 1], ALPHA) for probe in range(1, len(history)))
    breached = (v.breaches() if surely else v.level >= LEVELS["memorizing"] for v in verdicts)
    return next((probe for probe, breach in enumerate(breached, 1) if breach), None)


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How the runs did."""
    pairs = [(row["breach"]["budgeted"], row["breach"]["without budget"]) for row in rows]
    return {
        "runs": len(rows),
        "largest_share_of_one_span": max(max(row["shares_of_the_spans"]) for row in rows),
        "probes_without_risk": sum(row["probes_without_risk"] for row in rows),
        "runs_with_a_breach": sum(true is not None for _, true in pairs),
        "seen_by_one_probe_later": sum(mine is not None and mine <= true + 1 for mine, true in pairs if true),
        "false_alarms": sum(mine is not None and (true is None or mine < true) for mine, true in pairs),
    }


def provenance() -> dict[str, Any]:
    """What made the numbers."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "command": "OMP_NUM_THREADS=1 python recipes/benchmarks/budgeted_runs.py --art package",
        "load": os.getloadavg()[0],  # well above the number of cores: training and probes are both slower
        "versions": versions(),
        "commit": commit,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


if __name__ == "__main__":
    main()
