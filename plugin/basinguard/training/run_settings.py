"""What a guarded run of a framework is told, and the run that this makes."""

from __future__ import annotations

from typing import Any

from ..calibration.terms import CalibrationTerms
from ..guard.plan import ProbePlan
from ..pipelines.model_edits import edits_asked_for
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.detector_loading import fitted_embedder, load_detector
from .control_group import require_control, training_set
from .guard_options import BreachResponse, ControlGroup, OnError, ShippedEpoch
from .guarded_run import GuardedRun, guard_for
from .isolation import same_streams, untouched
from .protocols import CaptionedImages, TrainedModule


class RunSettings:
    """The options of `MemorizationGuard`; each is explained where it is kept.

    Args:
        plan: what a probe measures, and what it may cost.
        control: what the model is not trained on.
        detector: what decides that a sample is a copy.
        terms: what the exported checkpoint promises.
        respond: what happens when the risk is surely above `plan.alpha`.
        export_to: directory for the calibrated, guarded checkpoint, written when training ends.
        ship, on_error: see `GuardedRun`.
        every_n_epochs: probe after every n-th epoch.
        alignment: open_clip model that scores captions, see `alignment.clip_for`.

    Raises:
        ValueError: settings that contradict each other.
        FileNotFoundError: an embedder's weights or the held-out folder are missing.

    Example:
        >>> from basinguard import ControlGroup, MemorizationGuard, ProbePlan
        >>> guard = MemorizationGuard(ProbePlan(captions=8), ControlGroup(["a red kite"]), every_n_epochs=5)
        >>> guard.should_probe(epoch=4)
        True
    """

    def __init__(
        self,
        plan: ProbePlan = ProbePlan(),
        control: ControlGroup = ControlGroup(),
        detector: CopyDetectorSettings = CopyDetectorSettings(),
        terms: CalibrationTerms = CalibrationTerms(),
        respond: BreachResponse = BreachResponse(),
        *,
        export_to: str | None = None,
        ship: ShippedEpoch = "best",
        every_n_epochs: int = 1,
        alignment: str = "auto",
        on_error: OnError = "warn",
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"MemorizationGuard(every_n_epochs={every_n_epochs}): expected at least 1")
        self.plan, self.control, self.detector, self.terms, self.response = plan, control, detector, terms, respond
        with same_streams():  # a network is made with random weights before its own are read
            self.embedder = load_detector(detector)
        require_control(control, detector)
        self.export_to, self.every_n_epochs, self.alignment = export_to, every_n_epochs, alignment
        self.options: dict[str, Any] = {"ship": ship, "on_error": on_error}

    def should_probe(self, epoch: int) -> bool:
        """Whether to measure after this epoch, counted from 0."""
        return (epoch + 1) % self.every_n_epochs == 0

    def run_on(self, data: CaptionedImages, module: TrainedModule) -> GuardedRun:
        """The run that these settings make of images and of what is fine-tuned; modes and random streams stay.

        Raises:
            ValueError: something is wrong with the images, or the settings do not fit them.
        """
        pipe, base = module.pipe, str(getattr(module, "base_id", ""))
        with untouched(pipe.unet, pipe.vae, pipe.text_encoder):
            training = training_set(data, self.control)
            edits = edits_asked_for(self.detector, pipe, training.images)
            embedder = fitted_embedder(self.detector, self.embedder, training.images, training.heldout_images, edits)
            guard = guard_for(training, embedder, self.plan, base=base, alignment=self.alignment)
        return GuardedRun(guard, **self.options)
