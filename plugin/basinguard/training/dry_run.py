"""`basinguard fit --dry-run`: everything is built, nothing is trained, and what would happen is printed."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch

from ..calibration.cost import most_products
from ..calibration.design import Design
from ..calibration.terms import RANKED, CalibrationTerms
from ..core.generation import name_of
from ..core.progress import duration
from ..guard.control_prompts import MOST
from ..guard.probe_costs import probe_evals
from ..pipelines.prediction_type import evidence
from ..pipelines.timing import seconds_per_evaluation
from .data_sources import ImageSource
from .finetune_options import PRIOR_TIMESTEPS
from .resources import FitResources, guard_of, resources_of
from .run_settings import RunSettings

SEARCHED = (  # terms of a search
    *("strengths", "scales", "before", "after", "transitions", "refine", "anchor", "strength_schedules"),
    *("update_filters", "chain"),
)


def dry_run_summary(cli: Any) -> str:
    """What the built run would do, for people: its size, memory, disk, probes and time.

    Raises:
        ValueError: the run would be refused for what it is to export.
    """
    for callback in cli.trainer.callbacks:
        if isinstance(callback, RunSettings):
            callback.require_export(cli.model)
    needs = resources_of(cli.config)
    cli.datamodule.setup("fit")
    loader = cli.datamodule.train_dataloader()
    next(iter(loader))
    updates = ceil(len(loader) / (cli.config.trainer.accumulate_grad_batches or 1))
    epochs, images = cli.config.trainer.max_epochs or 1000, len(cli.datamodule.items)
    guard = guard_of(cli.config.trainer.callbacks)
    probes, each = _probe_load(guard, epochs, images)
    pairs = Design.of(guard.terms.design, images, guard.terms.pairs).pairs if guard and guard.export_to else 0
    usual = cli.model.family.usual_scale
    lines = [
        f"model:  {_model(cli.model)}",
        f"data:   {images} images, batches of {needs.workload.batch_size}: {updates} updates an epoch, "
        f"{updates * epochs} in {epochs} epochs",
        *(f"memory: {line}" for line in needs.footprint.lines()),
        f"        {needs.free_memory / 1e9:.1f} GB free on the {'GPU' if needs.on_gpu else 'CPU'} of this machine",
        f"disk:   {_disk(needs)}",
        f"probe:  {_probes(guard, probes, each, pairs, usual)}",
        f"time:   {_time(cli.model, needs, len(loader) * epochs, probes * each, guard, pairs)}",
        *(f"too little {problem}" for problem in needs.problems()),
        "dry run: everything was built, nothing was trained; --print_config shows the whole configuration",
    ]
    return "\n".join(lines)


def _model(model: Any) -> str:
    every = sum(p.numel() for p in model.parameters())
    opened = sum(p.numel() for p in model.trained().values())
    predicts, width = model.family.prediction_type(model.pipe), model.denoiser.config.get("cross_attention_dim")
    architecture = model.family.models if width is None else name_of(width)
    return f"{architecture}, predicts {predicts} ({_sure(model)}); trains {opened:,} of {every:,} parameters"


def _sure(model: Any) -> str:
    if model.family.denoiser_name != "unet":
        return "as all of its family do"
    measured = evidence(model.pipe).prediction_type
    return "confirmed by its output" if measured else "its output does not tell (untrained?)"


def _disk(needs: FitResources) -> str:
    export = f", two exports of {needs.footprint.weights / 1e9:.1f} GB" if needs.export else ""
    return (
        f"{needs.checkpoints} checkpoints of {needs.checkpoint_size / 1e9:.2f} GB{export}: {needs.disk / 1e9:.1f} GB "
        f"in all, {needs.free_disk / 1e9:.1f} GB free at {needs.root}"
    )


def _time(model: Any, needs: FitResources, batches: int, probed: int, guard: Any, pairs: int) -> str:
    """How long each part takes, from one batch that is timed here; a batch and its gradient are three evaluations."""
    rows, side = needs.workload.batch_size, needs.workload.resolution
    device = torch.device("cuda" if needs.on_gpu else "cpu")
    second = seconds_per_evaluation(model.pipe, rows=rows, resolution=side, device=device)
    prior = model.loss_options
    further = 1.5 if prior.prior_weight else 1  # half a batch beside each batch
    parts = {"training about": 3 * batches * rows * further, "probes at most": probed}
    if prior.prior_weight:
        parts["the base model's own pictures"] = 2 * PRIOR_TIMESTEPS * prior.prior_images
    if pairs:
        terms, plan = guard.terms, guard.plan
        calibration = CalibrationTerms(**{name: terms[name] for name in SEARCHED})
        searched, ranked, proven = most_products(
            calibration, scale=plan.scale or model.family.usual_scale, epochs=terms.epochs, graded=True
        )
        samples = (searched + RANKED * ranked) * terms.search_pairs + proven * pairs
        parts["search and proof at most"] = 2 * plan.timesteps * samples
    said = ", ".join(f"{name} {duration(evaluations * second)}" for name, evaluations in parts.items())
    return f"{said}; from one batch timed here ({second:.2g} s an evaluation), a factor of two either way"


def _probe_load(guard: Any, epochs: int, images: int) -> tuple[int, int]:
    """How many probes, and most evaluations of each."""
    if guard is None:
        return 0, 0
    plan, control = guard.plan, guard.control
    heldout = len(ImageSource.of_folder(control.folder).items) if control.folder else len(control.heldout or ())
    stand_ins = MOST if control.heldout is None and not control.folder else 0
    critical_scales = min(plan.critical_scales, images) + min(
        plan.critical_scales, heldout if control.folder else stand_ins
    )
    nodes = plan.timesteps * (2 if plan.solver == "heun" else 1)  # Heun evaluates twice at each timestep
    each = probe_evals(plan.captions, plan.seeds, nodes, images + stand_ins, heldout, critical_scales)
    return 1 + epochs // guard.every_n_epochs, each


def _probes(guard: Any, count: int, each: int, pairs: int, usual: float) -> str:
    if guard is None:
        return "no MemorizationGuard among trainer.callbacks, so nothing is measured"
    plan = guard.plan
    budget = f", or what budget={plan.budget} pays for" if plan.budget else ""
    shipped = f"; then calibrates on at most {pairs} pairs a product and exports" if pairs else ""
    return (
        f"the base, then every {guard.every_n_epochs} epochs, {count} in all: {plan.captions} captions x "
        f"{plan.seeds} seeds, {plan.timesteps} timesteps, scale {plan.scale or usual:g}; at most {each:,} "
        f"evaluations of the network each, {each * count:,} in all{budget}{shipped}"
    )
