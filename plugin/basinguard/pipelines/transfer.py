"""What a calibrated transition is worth under samplers it was not calibrated with: measured, never extrapolated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch

from ..core import seeds as seed_table
from ..core import stats
from ..core.record import Record, Transfer
from ..diffusion.sampling_options import SamplingOptions
from ..guard.guard import Guard
from .evaluation import mean_alignment
from .schedulers import SCHEDULERS, first_guided, scheduler_of
from .stock_sampling import fresh_pairs, sample_stock

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TIMESTEPS = (20, 30, 50)


@torch.no_grad()
def transfer_table(
    guard: Guard, pipe: DiffusionPipeline, record: Record, *, timesteps: Sequence[int] = TIMESTEPS, per_caption: int = 2
) -> Iterator[Transfer]:
    """Samples by the record's rule under each scheduler and number of timesteps, through the stock pipeline.

    Every row has the same captions and seeds, so rows differ by their sampler alone.

    Args:
        guard: knows the training images.
        pipe: the calibrated pipeline; its own scheduler is back afterwards.
        record: its calibration.
        timesteps: numbers of sampling steps.
        per_caption: fresh seeds for each caption.

    Raises:
        ValueError: the record does not fit the pipeline.
    """
    prompt, seeds = fresh_pairs(len(guard.training.captions), per_caption, seed_table.TRANSFER)
    texts, scale = [guard.training.captions[k] for k in prompt], record.sampler.scale
    for name, count in product(SCHEDULERS, timesteps):
        with scheduler_of(pipe, name):
            images = sample_stock(pipe, texts, seeds, record, SamplingOptions(scale=scale, timesteps=count)).images
            start, sigma = first_guided(pipe.scheduler, record.guidance.transition)
        yield Transfer(
            scheduler=name,
            timesteps=count,
            transition=start,
            sigma=sigma,
            risk=stats.rate(guard.is_copy(images), prompt),
            alignment=mean_alignment(guard, images, texts, prompt),
        )
