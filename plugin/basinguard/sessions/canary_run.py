"""What a fit with canaries says when it ends: which marked pictures came back, at which repetition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..attacks.canaries import CanaryBench, canary_text, judge_canaries
from ..core.files import write_text
from ..guard.plan import ProbePlan
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from ..similarity.embedder import Embedder
from ..similarity.structure import Structure
from ..training.callback import GuardHooks
from ..training.canary_steps import CanarySteps

FILE = "canaries.json"


def canary_run(trainer: Any, module: Any, images: Any) -> str:
    """Judges the canaries of a fit by its last weights, writes `canaries.json`, and returns the table as text."""
    plan, embedder = _guarded(trainer)
    model = LatentModel(module.pipe, resolution=images.resolution)
    base = LatentModel(load_pipeline(module.base_id), resolution=images.resolution)
    epochs = max(trainer.current_epoch, 1)
    turns = [count * epochs for count in images.canary_turns]
    bench = CanaryBench(model, base, embedder, plan, images.resolution)
    rows = judge_canaries(images.canaries, turns, _steps(trainer), bench)
    out = Path(trainer.log_dir or trainer.default_root_dir) / FILE
    write_text(out, json.dumps([json.loads(row.to_json()) for row in rows], indent=1) + "\n")
    return f"{canary_text(rows)}\n{embedder.metric.definition}\nwritten to {out}"


def _steps(trainer: Any) -> Sequence[int]:
    """Optimizer steps that each canary was in, as training counted them."""
    (counter,) = [callback for callback in trainer.callbacks if isinstance(callback, CanarySteps)]
    return [int(count) for count in counter.steps]


def _guarded(trainer: Any) -> tuple[ProbePlan, Embedder]:
    """The sampler and the copy detector of the guard that watched; their defaults where none did."""
    for callback in trainer.callbacks:
        if isinstance(callback, GuardHooks) and callback.run is not None:
            return callback.run.guard.plan, callback.run.guard.embedder
    return ProbePlan(), Structure()
