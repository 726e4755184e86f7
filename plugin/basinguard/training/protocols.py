"""What a guard needs of somebody's own training code: two small protocols, met by `FineTune` and `ImageFolder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from ..exports.merge import merged
from ..pipelines.families.registry import tuned_parts

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class TrainedModule(Protocol):
    """What is fine-tuned; a LightningModule is one as soon as it has `pipe`, and with `export_to` the other two.

    Where it averages its weights it also has a context `averaged_weights()` that puts the average in, and `ema`, the
    average, which is None while weights of an earlier epoch are exported. `hparams`, settings by name, go into the
    export's provenance; a `filter` is what interventions set (see `loss_filters`).

    Attributes:
        pipe: a `StableDiffusionPipeline` around the modules in training.
        base_id: id or directory of the model that is fine-tuned.
    """

    pipe: StableDiffusionPipeline
    base_id: str

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name; those that require a gradient are trained."""

    def export_pipeline(self) -> Any:
        """A stock pipeline of its own, adapters merged; training can go on afterwards."""


class CaptionedImages(Protocol):
    """What it is trained on; a datamodule is one as soon as it has these two.

    Interventions on images also need `act_on(rest, vary)`, see `ImageFolder.act_on`.

    Attributes:
        items: (name, caption) of each image, or a method that returns them.
    """

    items: Sequence[tuple[str, str]] | Callable[[], Sequence[tuple[str, str]]]

    def all_pixels(self) -> Tensor:
        """The images, [N, 3, H, W] in [0, 1], as the model sees them."""


def items_of(data: CaptionedImages) -> Sequence[tuple[str, str]]:
    """(name, caption) of each image."""
    return data.items() if callable(data.items) else data.items


@dataclass
class PipelineInTraining:
    """A pipeline whose denoiser and text encoders are trained by a loop: a `TrainedModule`."""

    pipe: StableDiffusionPipeline
    base_id: str = ""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of every part that a fine-tune may change."""
        for part in tuned_parts(self.pipe):
            yield from getattr(self.pipe, part).named_parameters(part)

    def export_pipeline(self) -> Any:
        """The pipeline with its adapters merged, and with a sampler where it holds the scheduler that adds noise."""
        return with_sampler(merged(self.pipe))


def pipeline_around(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> Any:
    """A pipeline around the modules that a training script holds: SDXL's where it holds two text encoders."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if isinstance(text_encoder, Sequence):
        parts = {"vae": vae, "unet": unet, "scheduler": scheduler}
        for name, pair in (("text_encoder", text_encoder), ("tokenizer", tokenizer)):
            parts |= dict(zip((name, f"{name}_2"), pair, strict=True))
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


def with_sampler(pipe: StableDiffusionPipeline) -> Any:
    """A pipeline that training scripts put together samples by DDPM, which takes a thousand steps: DDIM instead.

    The noise schedule and what the network predicts stay; a pipeline with a sampler is returned as it is.
    """
    if type(pipe.scheduler) is not DDPMScheduler:
        return pipe
    options = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}  # as Stable Diffusion has them
    return with_parts(pipe, scheduler=DDIMScheduler.from_config(pipe.scheduler.config, **options))


def with_parts(pipe: Any, **parts: Any) -> Any:
    """A pipeline like `pipe` with other components; `pipe` itself is left alone."""
    pipe = copy(pipe)
    pipe.register_modules(**parts)
    return pipe
