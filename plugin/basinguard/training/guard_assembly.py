"""The guard that options describe, for a framework's run and for a loop of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..guard.guard import Guard
from ..guard.plan import ProbePlan
from ..guard.training_set import TrainingSet
from ..pipelines.alignment import clip_for
from ..pipelines.distillation import fitting_plan
from ..pipelines.families.registry import networks_of
from ..pipelines.model_edits import edits_asked_for
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.detector_loading import fitted_embedder, load_detector
from ..similarity.embedder import Embedder
from ..similarity.rulers import feature_sets
from .isolation import untouched

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def assemble_guard(
    training: TrainingSet,
    plan: ProbePlan,
    detector: CopyDetectorSettings,
    *,
    embedder: Embedder | None = None,
    pipe: StableDiffusionPipeline | None = None,
    base: str = "",
    alignment: str = "auto",
) -> Guard:
    """The guard of these images; modes and random streams stay.

    Args:
        training: images, captions and held-out prompts.
        plan: what a probe measures, and what it may cost; sampled as the model's family is, where it does not say.
        detector: what decides that a sample is a copy.
        embedder: the detector's, where it has been loaded before.
        pipe: the model, whose own edits of the images `detector="auto"` then goes by as well.
        base: id or directory of what is fine-tuned.
        alignment: open_clip model that scores captions, see `alignment.clip_for`.

    Raises:
        ValueError: the plan does not fit the images; held-out images that are copies of training images.
        FileNotFoundError: an embedder's weights are missing.
    """
    with untouched(*(() if pipe is None else networks_of(pipe))):
        edits = None if pipe is None else edits_asked_for(detector, pipe, training.images)
        loaded = embedder or load_detector(detector)
        fitted = fitted_embedder(detector, loaded, training.images, training.heldout_images, edits)
        clip = clip_for(base, alignment, training.captions)
        rulers = feature_sets() if plan.taught else ()
        plan = plan if pipe is None else fitting_plan(pipe, plan)
        return Guard(training, fitted, plan, clip.score if clip else None, rulers)
