"""What several processes do together; started by torchrun, it writes what each of them saw.

PYTHONPATH=tests torchrun --standalone --nproc_per_node 2 tests/support/ddp_runs.py BASE PICTURES OUT [fit]
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.pipelines.latent_model import LatentModel
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.copy_detector import CopyDetector
from basinguard.similarity.structure import Structure
from basinguard.training.data import ImageFolder
from basinguard.training.distributed import Sharded, Team, TeamFailure
from basinguard.training.guarded_run import GuardedRun
from support.guarded_runs import CONTROL, fit, make_guard, untimed

PLAN = ProbePlan(captions=4, seeds=5, timesteps=2, scale=3.0, taught=False)


def make_run(pictures: str, plan: ProbePlan = PLAN) -> GuardedRun:
    images = ImageFolder(pictures, resolution=32)
    images.setup("fit")
    captions = tuple(caption for _, caption in images.items)
    return GuardedRun(Guard(TrainingSet(images.all_pixels(), captions, CONTROL.heldout), Structure(), plan))


def failing_at(call: int, error: Exception):
    """A denoiser that fails at its n-th call."""
    inner, calls = LatentModel.denoiser, 0

    def denoiser(self, prompts):
        denoise = inner(self, prompts)

        def fail(x, timestep, prompt):
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return denoise(x, timestep, prompt)

        return fail

    return denoiser


def problem_of(run: GuardedRun, pipe, **replaced) -> str:
    """The problem of a probe while methods of `LatentModel` or `CopyDetector` are replaced, in this process."""
    owners = {name: (CopyDetector if name == "matches" else LatentModel) for name in replaced}
    before = {name: getattr(owner, name) for name, owner in owners.items()}
    for name, method in replaced.items():
        setattr(owners[name], name, method)
    try:
        return run.measure(pipe, epoch=5, train_step=5).problem
    finally:
        for name, method in before.items():
            setattr(owners[name], name, method)


def on_a_budget(base: str, pictures: str, rank: int) -> list[str]:
    """Probes of two processes whose clocks and prices differ, in words."""
    pipe, run = load_pipeline(base), make_run(pictures, replace(PLAN, budget="5%"))
    run.measure(pipe, epoch=-1, train_step=0)
    for epoch, seconds in enumerate((5, 50, 500)):
        run.guard.spending.left_at -= seconds * (1 + rank)
        run.guard.spending.account.prices["gap"] *= 1 + rank
        run.measure(pipe, epoch=epoch, train_step=epoch)
    return [report.to_json() for report in untimed(run.history)]


def raising(error: Exception):
    def fail(*args, **kwargs):
        raise error

    return fail


def sharded(base: str, pictures: str, rank: int) -> dict[str, object]:
    """Probes of one model by one process, and by both together; with failures of either."""
    pipe, results = load_pipeline(base), {}
    run = make_run(pictures)
    together, run.team = run.team, Team()
    results["alone"] = untimed([run.measure(pipe, epoch=0, train_step=0)])[0].to_json()
    run.team = together
    calls = []
    inner = LatentModel._forward
    LatentModel._forward = lambda self, x, *rest: calls.append(len(x)) or inner(self, x, *rest)
    results["together"] = untimed([run.measure(pipe, epoch=0, train_step=0)])[0].to_json()
    LatentModel._forward = inner
    results["rows"] = sum(calls)
    model = Sharded(LatentModel(pipe), together)
    results["few rows"] = [list(model.decode(torch.zeros(n, 4, 16, 16)).shape) for n in (1, 32, 33)]
    full, broken, empty = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("in the network"), {}
    results["out of memory once in 1"] = problem_of(
        run, pipe, **(empty if rank == 0 else {"denoiser": failing_at(2, full)})
    )
    results["network fails in 1"] = problem_of(
        run, pipe, **(empty if rank == 0 else {"denoiser": failing_at(2, broken)})
    )
    bug = {"matches": raising(ValueError("only here"))}
    results["something else fails in 0"] = problem_of(run, pipe, **(bug if rank == 0 else empty))
    results["both fail"] = problem_of(run, pipe, **bug)
    results["afterwards"] = untimed([run.measure(pipe, epoch=0, train_step=0)])[0].to_json()
    try:
        model.decode(torch.zeros(3 + rank, 4, 16, 16))
    except TeamFailure as error:
        results["other rows"] = str(error)
    results["history"] = [report.problem for report in run.history]
    results["on a budget"] = on_a_budget(base, pictures, rank)
    return results


def trained(base: str, pictures: str, out: Path) -> dict[str, object]:
    """A Lightning fit with DDP; the probe of epoch 1 fails in process 1."""
    measure = Guard.measure

    def sometimes(self, model, *, epoch, **options):
        if epoch == 1 and dist.get_rank() == 1:
            raise RuntimeError("only in process 1")
        return measure(self, model, epoch=epoch, **options)

    Guard.measure = sometimes
    guard = make_guard(on_error="warn", plan={"captions": 4, "seeds": 3})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer, module = fit(
            base, pictures, out, guard, epochs=3, logger=True, trainer={"devices": 2, "strategy": "ddp"}
        )
    weights = torch.cat([p.detach().flatten() for p in module.trained().values()])
    return {
        "history": [report.to_json() for report in untimed(guard.history)],
        "weights": weights.double().sum().item(),
        "logged": {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("guard/")},
        "said": [str(w.message) for w in said if "training goes on" in str(w.message)],
    }


def main(base: str, pictures: str, out: str, what: str = "probe") -> None:
    """Runs one of the two stories."""
    torch.set_num_threads(1)
    if what == "fit":
        results = trained(base, pictures, Path(out))
    else:
        dist.init_process_group("gloo")
        results = sharded(base, pictures, dist.get_rank())
    import os

    (Path(out) / f"{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
