"""What a calibrated transition is worth under samplers it was not calibrated with: measured, never extrapolated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from ..core import seeds as seed_table
from ..core import stats
from ..core.record import Record, Transfer
from ..guard.guard import Guard
from .evaluation import mean_alignment
from .stock_sampling import fresh_pairs, sample_stock

STEPS = (20, 30, 50)
SCHEDULERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "Euler": (EulerDiscreteScheduler, {}),
    "DPM-Solver++ 2M": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM-Solver++ 2M, Karras sigmas": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
}


@torch.no_grad()
def transfer_table(
    guard: Guard, pipe: Any, record: Record, *, steps: Sequence[int] = STEPS, per_caption: int = 2
) -> Iterator[Transfer]:
    """Samples by the record's rule under each scheduler and step count, through the stock pipeline.

    Every row has the same captions and seeds, so rows differ by their sampler alone.

    Args:
        guard: knows the training images.
        pipe: the calibrated pipeline; its own scheduler is back afterwards.
        record: its calibration.
        steps: sampling steps.
        per_caption: fresh seeds for each caption.

    Raises:
        ValueError: the record does not fit the pipeline.
    """
    prompt, seeds = fresh_pairs(len(guard.training.captions), per_caption, seed_table.TRANSFER)
    texts, scale = [guard.training.captions[k] for k in prompt], record.sampler.scale
    for name, count in product(SCHEDULERS, steps):
        with scheduler_of(pipe, name):
            images = sample_stock(pipe, texts, seeds, record, scale=scale, timesteps=count).images
            start, sigma = first_guided(pipe.scheduler, record.guidance.transition)
        yield Transfer(
            scheduler=name,
            timesteps=count,
            transition=start,
            sigma=sigma,
            risk=stats.rate(guard.is_copy(images), prompt),
            alignment=mean_alignment(guard, images, texts, prompt),
        )


@contextmanager
def scheduler_of(pipe: Any, name: str) -> Iterator[None]:
    """Inside, `pipe` samples by another scheduler, with the noise schedule of its own."""
    kind, options = SCHEDULERS[name]
    own = pipe.scheduler
    pipe.scheduler = kind.from_config(own.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = own


def first_guided(scheduler: Any, transition: float) -> tuple[float, float] | tuple[None, None]:
    """The first timestep at or below `transition` on the grid the scheduler has just used, and its noise level."""
    guided = [float(t) for t in scheduler.timesteps if float(t) <= transition]
    if not guided:
        return None, None
    signal = float(scheduler.alphas_cumprod[round(guided[0])])
    return guided[0], ((1 - signal) / max(signal, 1e-12)) ** 0.5
