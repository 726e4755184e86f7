"""Calibrates prompt triage on a pipeline as people sample it: one run of plain CFG shows the gap and the outcome.

Triage stays off until somebody asks for it: `basinguard.load(directory, triage=True)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..calibration.prompt_triage import calibrate_triage
from ..core import seeds as seed_table
from ..core.record import TriageResult
from ..diffusion.sampling_options import SamplingOptions
from ..guidance.core import Observation
from .attachment import plain_cfg
from .families.registry import scale_of
from .protect import last_trace
from .stock_sampling import BATCH, fresh_pairs, sample_batch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def calibrate_by_sampling(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    is_copy: Callable[[Tensor], Tensor],
    sampling: SamplingOptions,
    *,
    per_prompt: int = 4,
    wanted_miss: float = 0.05,
    first_seed: int = seed_table.TRIAGE,
) -> TriageResult:
    """Samples every prompt by plain CFG; a pair pulls when its sample is a copy.

    Args:
        pipe: a pipeline with the scheduler that people will use. One that is protected by a record with a
            `strength_schedule` is sampled with these strengths, as harmless prompts are then.
        prompts: training captions and others, at least two that pull and two that do not.
        is_copy: whether each image [B, 3, H, W] in [0, 1] reproduces a training image, [B].
        sampling: how it is sampled.
        per_prompt: seeds for each prompt; no two pairs share one.
        wanted_miss: see `prompt_triage.calibrate_triage`.
        first_seed: of the run of seeds.

    Raises:
        ValueError: see `prompt_triage.calibrate_triage`.
    """
    prompt, seeds = fresh_pairs(len(prompts), per_prompt, first_seed)
    pulling: list[tuple[int, float]] = []
    harmless: list[tuple[int, float]] = []
    timestep = 0.0
    for first in range(0, len(prompt), BATCH):
        rows = slice(first, first + BATCH)
        texts = [prompts[k] for k in prompt[rows]]
        batch = sample_batch(pipe, texts, seeds[rows], plain_cfg(pipe, scale_of(pipe, sampling)), sampling)
        observation = _first_gaps(batch.trace)
        timestep = observation.timestep
        for k, copied, gap in zip(prompt[rows], is_copy(batch.images).tolist(), gaps(observation), strict=True):
            (pulling if copied else harmless).append((k, gap))
    return calibrate_triage(pulling, harmless, timestep=timestep, wanted_miss=wanted_miss)


def first_gap(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    sampling: SamplingOptions = SamplingOptions(timesteps=50),
) -> tuple[float, list[float]]:
    """How strongly each prompt pulls at the start, for one evaluation a prompt; a protected pipeline stays protected.

    Returns:
        The timestep, and the gap of each prompt there: the first that is not zero, as `guidance.triage` reads it.
    """

    def stop(pipe: DiffusionPipeline, index: int, timestep: Any, values: dict) -> dict:
        pipe._interrupt = min(gaps(last_trace(pipe)[-1])) > 0
        return values

    options = {"output_type": "latent", "callback_on_step_end": stop}
    seeds = [seed] * len(prompts)
    samples = sample_batch(pipe, prompts, seeds, plain_cfg(pipe, scale_of(pipe, sampling)), sampling, **options)
    observation = _first_gaps(samples.trace)
    return observation.timestep, gaps(observation)


def gaps(observation: Observation) -> list[float]:
    """The gap of every sample at one evaluation; none where only one branch was evaluated."""
    return [] if observation.gap is None else observation.gap.tolist()


def _first_gaps(trace: Sequence[Observation]) -> Observation:
    """The first evaluation at which every gap was above zero."""
    return next((observation for observation in trace if min(gaps(observation)) > 0), trace[-1])
