"""Samples from a stock pipeline, drawn as a user would draw them.

Everything goes through the pipeline's own `__call__` with the rule attached by `protect`, so what is measured here is
what ships, not the sampler the calibration used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.progress import advance
from ..core.record import Record
from ..diffusion.sampling_options import SamplingOptions
from ..guidance.core import Observation, Rule
from .families.registry import family_of, scale_of
from .protect import is_protected, last_trace, protected

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BATCH = 32


@dataclass(frozen=True)
class StockSamples:
    """What a stock pipeline returned.

    Attributes:
        images: [N, 3, H, W] in [0, 1], or clean latents where those were asked for, on the CPU in float32.
        trace: what the rule saw and decided, one entry per evaluation; empty without a rule.
        unet_evals: sample-evaluations of the UNet, all together.
    """

    images: Tensor
    trace: list[Observation]
    unet_evals: int


def sample_batch(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rule: Rule | Record | None,
    sampling: SamplingOptions,
    **options: Any,
) -> StockSamples:
    """One call of the pipeline; its batch size never changes an image's noise.

    Args:
        pipe: a stock pipeline; what it carries already is back afterwards.
        prompts: N of them.
        seeds: one for each.
        rule: to protect the pipeline with; None samples with the pipeline's own CFG.
        sampling: how many steps; the scale of plain CFG, which a rule may set otherwise.
        options: more arguments of the pipeline, such as `latents` or `output_type="latent"`.
    """
    with protected(pipe, rule):
        return sample_as_is(pipe, prompts, seeds, sampling, **options)


def sample_as_is(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingOptions,
    **options: Any,
) -> StockSamples:
    """One call of the pipeline by the rule and the strengths that it carries, if any; see `sample_batch`."""
    arguments = {
        "prompt": list(prompts),
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "num_inference_steps": sampling.timesteps,
        "output_type": "pt",
        **family_of(pipe).call_options(pipe, scale_of(pipe, sampling)),
    }
    images = pipe(**arguments | options).images.float().cpu()
    if not is_protected(pipe):
        return StockSamples(images, [], 2 * sampling.timesteps * len(images))
    trace = list(last_trace(pipe))
    return StockSamples(images, trace, sum(o.unet_evals for o in trace))


def sample_stock(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rule: Rule | Record | None,
    sampling: SamplingOptions,
) -> StockSamples:
    """Images of any number of prompts, see `sample_batch`."""
    slices = [slice(first, first + BATCH) for first in range(0, len(prompts), BATCH)]
    batches = []
    for rows in slices:
        batches.append(sample_batch(pipe, prompts[rows], seeds[rows], rule, sampling))
        advance(batches[-1].unet_evals)
    trace = [observation for batch in batches for observation in batch.trace]
    return StockSamples(torch.cat([batch.images for batch in batches]), trace, sum(b.unet_evals for b in batches))


def fresh_pairs(captions: int, per_caption: int, first_seed: int) -> tuple[list[int], list[int]]:
    """Caption index and seed of every pair; no two pairs share a seed."""
    prompt = [k for k in range(captions) for _ in range(per_caption)]
    return prompt, [first_seed + i for i in range(len(prompt))]
