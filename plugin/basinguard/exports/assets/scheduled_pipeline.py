"""Samples by the rule and the strengths this LoRA was measured with; needs diffusers and the files beside it, no more.

    pipe = DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR, trust_remote_code=True)
    pipe.load_lora_weights(DIR)
    image = pipe("a prompt", guidance_scale=7.5).images[0]

Both are read from the record in `scheduler/scheduler_config.json` (key "_basinguard").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import StableDiffusionPipeline

from .basinguard_guidance import SwitchAt, epsilon_factor, from_record, steer  # type: ignore
from .basinguard_strength import StrengthSchedule, scheduled  # type: ignore


class BasinguardPipeline(StableDiffusionPipeline):
    """A StableDiffusionPipeline that steers its guidance and the strength of its LoRA; called like the stock one."""

    @property
    def basinguard_rule(self) -> SwitchAt:
        """The rule in the scheduler's config."""
        return from_record(_record_in(self.scheduler.config))

    @property
    def basinguard_schedule(self) -> StrengthSchedule:
        """The strengths there."""
        return StrengthSchedule(**_record_in(self.scheduler.config)["product"]["strength_schedule"])

    @contextmanager
    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        """The stock progress bar; the denoiser is steered while it is open, which is the denoising loop."""
        factor = epsilon_factor(self.scheduler)
        with (
            scheduled(self.unet, self.basinguard_schedule),
            steer(self.unet, self.basinguard_rule, pipeline_scale=lambda: self.guidance_scale, factor=factor),
            super().progress_bar(iterable=iterable, total=total) as bar,
        ):
            yield bar


def _record_in(config: Any) -> Any:
    record = config.get("_basinguard")
    if record is None:
        raise ValueError("scheduler_config.json has no '_basinguard' record, so there is nothing to sample by")
    return json.loads(record)
