"""Samples by the rule this checkpoint was measured with; needs diffusers and the file beside it, nothing else.

    pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
    image = pipe("a prompt", guidance_scale=7.5).images[0]

The rule is read from the record in `scheduler/scheduler_config.json` (key "_basinguard").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import StableDiffusionPipeline

from .basinguard_guidance import SwitchAt, epsilon_factor, from_record, steer  # type: ignore


class BasinguardPipeline(StableDiffusionPipeline):
    """A StableDiffusionPipeline that steers its own classifier-free guidance; called like the stock one."""

    @property
    def basinguard_rule(self) -> SwitchAt:
        """The rule in the scheduler's config."""
        record = self.scheduler.config.get("_basinguard")
        if record is None:
            raise ValueError("scheduler_config.json has no '_basinguard' record, so there is no rule to sample by")
        return from_record(json.loads(record))

    @contextmanager
    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        """The stock progress bar; the denoiser is steered while it is open, which is the denoising loop."""
        network = self.transformer if getattr(self, "unet", None) is None else self.unet
        factor = epsilon_factor(self.scheduler)
        with (
            steer(network, self.basinguard_rule, pipeline_scale=lambda: self.guidance_scale, factor=factor),
            super().progress_bar(iterable=iterable, total=total) as bar,
        ):
            yield bar
