"""What the guard of a loop of one's own is told, and the run that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor
from torch.utils.data import DataLoader

from ..guard.control_prompts import recombined_prompts
from ..guard.plan import ProbePlan
from ..guard.training_set import TrainingSet
from ..pipelines.families.registry import family_of
from ..similarity.copy_detector_settings import CopyDetectorSettings
from .data_sources import Picture, image_hashes, pixels_of
from .guard_assembly import assemble_guard
from .guard_options import OnError, ShippedEpoch
from .guarded_run import GuardedRun
from .loader_images import LoaderImages
from .pixel_checks import require_unit_pixels, warn_if_reversed
from .protocols import pipeline_around
from .requirements import require_whole_weights_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline


class LoopSettings:
    """The options of `LoopGuard`; each is explained where it is kept.

    Args:
        training: images, captions and held-out prompts.
        accelerator: saves and restores the history in its checkpoints; without one, use `state_dict`.
        plan, detector, pipe, alignment: see `assemble_guard`; give the mixed precision of the training as
            `plan.autocast`, and a scale where no `pipe` says what is usual for its family.
        ship, on_error: see `GuardedRun`.

    Raises:
        ValueError: the accelerator splits the weights among processes, or settings that cannot be measured.
        FileNotFoundError: an embedder's weights are missing.
    """

    def __init__(
        self,
        training: TrainingSet,
        accelerator: Accelerator | None = None,
        *,
        plan: ProbePlan = ProbePlan(),
        detector: CopyDetectorSettings = CopyDetectorSettings(),
        pipe: StableDiffusionPipeline | None = None,
        alignment: str = "none",
        ship: ShippedEpoch = "best",
        on_error: OnError = "warn",
    ) -> None:
        if accelerator is not None:
            require_whole_weights_of(accelerator)
        require_unit_pixels(training.images)
        if pipe is not None:
            warn_if_reversed(pipe, training.images)
        guard = assemble_guard(training, plan, detector, pipe=pipe, alignment=alignment)
        self.run = GuardedRun(guard, ship=ship, on_error=on_error)
        self.pipe = pipe
        if accelerator is not None:
            accelerator.register_for_checkpointing(self)

    @classmethod
    def for_script(
        cls,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        noise_scheduler: Any,
        *,
        images: Sequence[Picture] | Tensor | DataLoader,
        captions: Sequence[str] = (),
        accelerator: Accelerator | None = None,
        plan: ProbePlan = ProbePlan(),
        detector: CopyDetectorSettings = CopyDetectorSettings(),
    ) -> Self:
        """The guard of a training script that holds modules instead of a pipeline; `guard.pipe` is made of them.

        Args:
            unet, vae, text_encoder, tokenizer: as the script loaded them, prepared by accelerate or not; of SDXL both
                text encoders and both tokenizers, each in a list.
            noise_scheduler: what adds noise while training; its noise schedule and prediction type are the model's.
            images: of the training set: paths, PIL images, pixels [N, 3, H, W] in 0..1, RGB, or the script's own
                DataLoader (see `LoaderImages`), which has the captions too.
            captions: one for each.
            accelerator, plan, detector: as above.

        Raises:
            ValueError: pixels outside 0..1, or another number of captions than of images.
        """
        unwrapped = accelerator.unwrap_model if accelerator is not None else lambda module: module
        vae, unet = unwrapped(vae), unwrapped(unet)
        pair = isinstance(text_encoder, Sequence)
        text_encoder = [*map(unwrapped, text_encoder)] if pair else unwrapped(text_encoder)
        pipe = pipeline_around(unet, vae, text_encoder, tokenizer, noise_scheduler)
        if isinstance(images, DataLoader):
            own = LoaderImages(images, tokenizer[0] if pair else tokenizer)
            images, captions = own.all_pixels(), [caption for _, caption in own.items]
        pixels = pixels_of(images, family_of(pipe).native_side(pipe))
        prompts, hashes = recombined_prompts(captions), image_hashes(images)
        training = TrainingSet(pixels, tuple(captions), prompts, stand_in=True, image_sha256=hashes)
        return cls(training, accelerator, plan=plan, detector=detector, pipe=pipe)
