"""What people get who sample the epochs that `acting_study.py` would ship, on fresh seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from acting_runs import MORE, PLAN, Run, folders, guard_for, images_of, style
from safetensors.torch import load_file

from basinguard.basin.trajectories import Pairs, run_branch, run_trunk
from basinguard.core import stats
from basinguard.core.report import Report
from basinguard.diffusion.sampling import draw_noise
from basinguard.guard.checkpoint_selection import choose_checkpoint
from basinguard.guard.guard import Guard
from basinguard.pipelines.latent_model import LatentModel
from basinguard.similarity.kernel_distance import KernelDistance
from basinguard.training.finetune import FineTune
from basinguard.training.isolation import holding

SHIP_SEED = 3_000_000  # of what is shipped; no probe uses these seeds
PASSES = 30  # "fixed updates per image": the last probed epoch that has shown every image at most so often
HABITS = ("fixed", "validation", "last")


def epochs_of(outcome: dict[str, Any]) -> dict[str, int | None]:
    """The epoch that each habit, and the guard, ships of one run; None where the guard ships none."""
    history = [Report.model_validate(row) for row in outcome["history"]]
    allowed, later = PLAN["alpha"], history[1:]
    losses = dict(zip((r.epoch for r in history), outcome["validation"], strict=True))
    ours = {how: choose_checkpoint(history, allowed, how) for how in ("plain", "guarded")}
    return {
        "fixed": max(r.epoch for r in later if r.epoch + 1 <= PASSES),
        "validation": min((r.epoch for r in later), key=lambda epoch: losses[epoch]),
        "last": later[-1].epoch,
        **{how: choice.epoch if choice else None for how, choice in ours.items()},
    }


@torch.no_grad()
def samples(guard: Guard, model: LatentModel, prompts: list[str], total: int, transition: float = 999.0) -> Any:
    """Images [total, 3, H, W] of prompts going round, each with a seed of its own, and whose each is."""
    prompt = torch.arange(total) % len(prompts)
    pairs = Pairs(prompt, SHIP_SEED + torch.arange(total), noise_of(total, model))
    probe = guard.guided_model(model, prompts)
    index = torch.zeros_like(prompt) + int((probe.timesteps > transition).sum())
    states = probe.path.begin(pairs.noise)
    if int(index[0]):
        states = run_trunk(probe, pairs, before=0.0).pair_states[index, torch.arange(total)]
    return model.decode(run_branch(probe, states, prompt, index)), prompt


def noise_of(total: int, model: LatentModel) -> torch.Tensor:
    return draw_noise(range(SHIP_SEED, SHIP_SEED + total), model.latent_shape)


def shipped(
    guard: Guard,
    model: LatentModel,
    distance: KernelDistance,
    transition: float = 999.0,
    pairs: int = 32,
    each: int = 1,
) -> dict[str, Any]:
    """What people get who sample this model so: risk of its captions, alignment and style of held-out ones."""
    captions, prompts = list(guard.training.captions), list(guard.training.heldout)
    own, which = samples(guard, model, captions, pairs, transition)
    held, whose = samples(guard, model, prompts, each * len(prompts), transition)
    assert guard.score_alignment is not None
    scores = guard.score_alignment(held, [prompts[k] for k in whose.tolist()])
    return {
        "risk": stats.rate(guard.is_copy(own), which).model_dump(),
        "alignment": stats.cluster_bootstrap(scores, whose).model_dump(),
        "distance": stats.cluster_bootstrap(distance(held), whose).model_dump(),
    }


def ship(run: Run, out: Path) -> None:
    """Fresh seeds on every epoch that somebody would ship."""
    target, source = out / f"ship-{run.name}.json", out / f"{run.name}.json"
    if target.exists() or not source.exists() or run in MORE:
        return
    outcome = json.loads(source.read_text())
    epochs = epochs_of(outcome)
    transitions = {row["epoch"]: row["transition"] for row in outcome["history"]}
    own, held = folders(out / "data", run.size)
    guard, distance = guard_for(images_of(own), images_of(held)), style()
    module = FineTune("tinyworld", **run.settings).eval()
    summary: dict[str, Any] = {"epochs": epochs, "plain": {}, "guarded": {}}
    for epoch in sorted({e for how, e in epochs.items() if e is not None and how != "guarded"}):
        with holding(module, load_file(out / run.name / f"epoch-{epoch}.safetensors")):
            summary["plain"][epoch] = shipped(guard, LatentModel(module.pipe), distance)
    epoch = epochs["guarded"]
    if epoch is not None and transitions[epoch] >= 999 and epoch in summary["plain"]:
        summary["guarded"][epoch] = summary["plain"][epoch]  # guidance may be on from the start: the same samples
    elif epoch is not None:
        with holding(module, load_file(out / run.name / f"epoch-{epoch}.safetensors")):
            summary["guarded"][epoch] = shipped(guard, LatentModel(module.pipe), distance, transitions[epoch])
    base = out / "ship-base.json"
    if not base.exists():
        untrained = FineTune("tinyworld", **run.settings).eval()
        base.write_text(json.dumps(shipped(guard, LatentModel(untrained.pipe), distance), indent=1))
    target.write_text(json.dumps(summary, indent=1))
    print(run.name, json.dumps(epochs), flush=True)
