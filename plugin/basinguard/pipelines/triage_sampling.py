"""Calibrates prompt triage on a pipeline as people sample it: one run of ordinary CFG shows the gap and the outcome.

Triage stays off until somebody asks for it: `basinguard.load(directory, triage=True)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calibration.prompt_triage import calibrate_triage
from ..core import seeds as seed_table
from ..core.record import TriageResult
from ..guidance.core import Constant, Observation
from .protect import last_trace, protect, unprotect

BATCH = 32


def calibrate_by_sampling(
    pipe: Any,
    prompts: Sequence[str],
    is_copy: Callable[[Tensor], Tensor],
    *,
    per_prompt: int = 4,
    wanted_miss: float = 0.05,
    first_seed: int = seed_table.TRIAGE,
    **options: Any,
) -> TriageResult:
    """Samples every prompt by ordinary CFG; a pair pulls when its sample is a copy.

    Args:
        pipe: an unprotected pipeline, with the scheduler that people will use.
        prompts: training captions and others, at least two that pull and two that do not.
        is_copy: whether each image [B, 3, H, W] in [0, 1] reproduces a training image, [B].
        per_prompt: seeds for each prompt; no two pairs share one.
        wanted_miss: see `triage.calibrate_triage`.
        first_seed: of the run of seeds.
        options: of the pipeline, `num_inference_steps` and `guidance_scale` among them.

    Raises:
        ValueError: see `triage.calibrate_triage`.
    """
    number = [k for k in range(len(prompts)) for _ in range(per_prompt)]
    pulling: list[tuple[int, float]] = []
    harmless: list[tuple[int, float]] = []
    timestep = 0.0
    for first in range(0, len(number), BATCH):
        rows = range(first, min(first + BATCH, len(number)))
        texts, seeds = [prompts[number[row]] for row in rows], [first_seed + row for row in rows]
        images, seen = _ordinary(pipe, texts, seeds, options)
        timestep = seen.timestep
        for row, copied, gap in zip(rows, is_copy(images).tolist(), gaps(seen), strict=True):
            (pulling if copied else harmless).append((number[row], gap))
    return calibrate_triage(pulling, harmless, timestep=timestep, wanted_miss=wanted_miss)


def first_gap(pipe: Any, prompts: Sequence[str], seed: int = 0, **options: Any) -> tuple[float, list[float]]:
    """How strongly each prompt pulls at the start, for one evaluation a prompt; a protected pipeline stays protected.

    Returns:
        The timestep, and the gap of each prompt there: the first that is not zero, as `schedules.Triage` reads it.
    """

    def stop(pipe: Any, index: int, timestep: Any, values: dict) -> dict:
        pipe._interrupt = min(gaps(last_trace(pipe)[-1])) > 0
        return values

    before = pipe.__dict__.get("progress_bar")
    options |= {"output_type": "latent", "callback_on_step_end": stop}
    try:
        _, seen = _ordinary(pipe, prompts, [seed] * len(prompts), options)
    finally:
        if before is not None:
            pipe.progress_bar = before
    return seen.timestep, gaps(seen)


def gaps(seen: Observation) -> list[float]:
    """The gap of every sample at one evaluation; none where only one branch was evaluated."""
    return [] if seen.gap is None else seen.gap.tolist()


def _ordinary(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], options: dict[str, Any]
) -> tuple[Tensor, Observation]:
    """Images (or latents) by ordinary CFG on the CPU, and the first evaluation at which every gap was above zero."""
    options = {"output_type": "pt", **options}
    scale = options.setdefault("guidance_scale", 7.5)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        images = protect(pipe, Constant(scale))(list(prompts), generator=generators, **options)
        trace = last_trace(pipe)
    finally:
        unprotect(pipe)
    return images.images.float().cpu(), next((seen for seen in trace if min(gaps(seen)) > 0), trace[-1])
