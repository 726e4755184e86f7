"""The model under test with what a mitigation may use of it, and the batches that every mitigation samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from ..core.record import read_record
from ..diffusion.sampling import draw_noise
from ..exports.merge import merged
from ..guard.guard import Guard
from ..guard.plan import ProbePlan
from ..guard.training_set import TrainingSet
from ..pipelines.alignment import alignment_for
from ..pipelines.families.registry import networks_of
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline, require_capability
from ..pipelines.lora_apart import require_whole_model
from ..pipelines.model_edits import edits_asked_for
from ..similarity.copy_detector_settings import AUTO, CopyDetectorSettings
from ..similarity.detector_loading import fitted_embedder, load_detector
from ..training.control_group import heldout_pixels
from ..training.data import ImageFolder
from ..training.finetune_options import ReadingOptions
from .settings import ComparisonOptions

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Prompts with one seed each; equal seeds share their initial noise."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.prompts[rows], self.seeds[rows])


@dataclass
class Testbed:
    """The model under test and what a mitigation may use of it. Freezes the pipelines it is given.

    Attributes:
        pipe: the fine-tuned `StableDiffusionPipeline`, as it stands.
        guard: knows the training images, the embedder, the guidance scale and the number of sampling steps.
        base: the model that was fine-tuned; None when it is not known.
        checkpoints: earlier states of the same run, most trained first.
        cache: what a mitigation computes once for all its intensities, such as a calibration.
    """

    pipe: StableDiffusionPipeline
    guard: Guard
    base: Any | None = None
    checkpoints: tuple[Path, ...] = ()
    cache: dict[str, Any] = field(default_factory=dict)

    __test__ = False  # not a test class, whatever its name begins with

    def __post_init__(self) -> None:
        if not self.scale > 1:
            raise ValueError(f"scale={self.scale}: plain CFG, which every mitigation is compared with, is above 1")
        for pipe in (self.pipe, self.base):
            if pipe is not None:
                for module in networks_of(pipe):
                    module.requires_grad_(False)
                pipe.set_progress_bar_config(disable=True)

    def cached(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` returned the first time that `name` was asked for."""
        if name not in self.cache:
            self.cache[name] = compute()
        value: T = self.cache[name]
        return value

    @property
    def scale(self) -> float:
        """Guidance scale of plain CFG."""
        return self.guard.plan.guidance_scale

    @property
    def units(self) -> float:
        """Share of the papers' usual scale, 7.5: what a guidance weight from a paper is multiplied by here."""
        return self.scale / 7.5

    @property
    def timesteps(self) -> int:
        """Number of sampling steps."""
        return self.guard.plan.timesteps

    @cached_property
    def model(self) -> LatentModel:
        """The pipeline as a denoiser in epsilon space."""
        return LatentModel(self.pipe)

    @property
    def unets(self) -> list[nn.Module]:
        """Every UNet a mitigation may call, once each."""
        unets = [self.pipe.unet] + ([self.base.unet] if self.base is not None else [])
        return list({id(unet): unet for unet in unets}.values())

    def noise(self, batch: Batch) -> Tensor:
        """Initial noise of a batch, [B, C, h, w]: the same for every mitigation."""
        return draw_noise(batch.seeds, self.model.latent_shape)


def load_testbed(
    model: str,
    data: Path,
    options: ComparisonOptions,
    detector: CopyDetectorSettings = CopyDetectorSettings(),
) -> tuple[Testbed, str]:
    """Loads the models and the images; what was fine-tuned is named by the options or by the model's own record."""
    record, base = Path(model) / "basinguard.json", options.base
    if not base and record.is_file():
        base = read_record(record).base
    require_capability(model, "comparable")
    for path in options.checkpoints:
        require_capability(path, "comparable")
        require_whole_model(path)
    if options.lora is None:
        require_whole_model(model)
    pipe = load_pipeline(model, lora=options.lora)
    if options.lora is not None:
        pipe, base = merged(pipe), base or model
    resolution = LatentModel(pipe).resolution
    images = ImageFolder(str(data), resolution=resolution, reading=ReadingOptions(caption=options.caption or None))
    images.setup("compare")
    training = TrainingSet(images.all_pixels(), tuple(caption for _, caption in images.items))
    asked = detector.threshold == "heldout" or detector.embedder == AUTO
    others = heldout_pixels(options.heldout, images.resolution) if asked else None
    edits = edits_asked_for(detector, pipe, training.images)
    embedder = fitted_embedder(detector, load_detector(detector), training.images, others, edits)
    plan = ProbePlan(captions=1, timesteps=options.timesteps, scale=options.scale)
    guard = Guard(training, embedder, plan, alignment_for(base or model, options.alignment))
    return Testbed(pipe, guard, load_pipeline(base) if base else None, tuple(options.checkpoints)), base
