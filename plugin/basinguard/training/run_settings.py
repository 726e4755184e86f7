"""What a guarded run of a framework is told, and the run that this makes."""

from __future__ import annotations

from inspect import getdoc
from pathlib import Path
from typing import Any

from ..calibration.terms import CalibrationTerms
from ..core.option_docs import explained_options
from ..core.report import Report
from ..guard.plan import ProbePlan
from ..pipelines.distillation import fitting_terms
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.detector_loading import load_detector
from .breach_responder import BreachResponder
from .control_group import require_control, training_set
from .data import ImageFolder
from .epoch_series import require_change_to_filter, require_lora_to_schedule
from .guard_assembly import assemble_guard
from .guard_options import BreachResponse, ControlGroup, OnError, ShippedEpoch
from .guarded_run import GuardedRun
from .isolation import same_streams
from .pixel_checks import warn_if_reversed
from .protocols import CaptionedImages, TrainedModule
from .requirements import require_exportable, require_parts


class RunSettings:
    """The options of `MemorizationGuard`; each is explained where it is kept.

    Args:
        plan: what a probe measures, and what it may cost.
        control: what the model is not trained on.
        detector: what decides that a sample is a copy.
        terms: what the exported checkpoint promises.
        respond: what happens when the risk is surely above `plan.alpha`.
        export_to: directory for the calibrated, guarded checkpoint, written when training ends.
        ship: of the epochs that keep the risk, export the "best" by `checkpoint_selection.choose_checkpoint`, or the
            "last".
        every_n_epochs: probe after every n-th epoch.
        alignment: open_clip model that scores captions: "auto" (TinyWorld's own on TinyWorld, else none), "none", a
            directory or a name; see `alignment.clip_for`.
        on_error: "warn" says once what failed and lets training go on, "raise" ends it.

    Raises:
        ValueError: settings that contradict each other.
        FileNotFoundError: an embedder's weights or the held-out folder are missing.

    Example:
        >>> from basinguard import ControlGroup, MemorizationGuard, ProbePlan
        >>> guard = MemorizationGuard(ProbePlan(captions=8), ControlGroup(["a red kite"]), every_n_epochs=5)
        >>> guard.should_probe(epoch=4)
        True
    """

    run: GuardedRun | None = None  # from the beginning of a fit on

    def __init_subclass__(cls) -> None:
        """Lets `help()` of a guard show every option, which are each explained once, where they are kept."""
        super().__init_subclass__()
        cls.__doc__ = f"{getdoc(cls)}\n\n{explained_options(RunSettings)}"

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

    @property
    def history(self) -> list[Report]:
        """Every report so far, see `GuardedRun.history`."""
        return self.run.history if self.run else []

    def should_probe(self, epoch: int, of: int | None = None) -> bool:
        """Whether to measure after this epoch, counted from 0; always after the last of so many."""
        return (epoch + 1) % self.every_n_epochs == 0 or epoch + 1 == of

    def require_export(self, module: TrainedModule) -> None:
        """Refuses an export that the end of the run could not write, before anything is trained.

        Raises:
            ValueError: the model's family has none, or the terms do not fit what is trained.
        """
        if self.export_to:
            require_exportable(module.pipe)
            require_lora_to_schedule(module, self.terms)
            require_change_to_filter(module, self.terms)
            fitting_terms(module.pipe, self.terms)

    def run_on(self, data: CaptionedImages, module: TrainedModule) -> GuardedRun:
        """The run that these settings make of images and of what is fine-tuned; modes and random streams stay.

        Raises:
            TypeError: a part of either that the guard needs is missing.
            ValueError: something is wrong with the images, or the settings do not fit them.
        """
        require_parts(data, module, exported=self.export_to is not None)
        self.require_export(module)
        responder = BreachResponder(self.response, module, data)
        with same_streams():
            training = training_set(data, self.control)
            if not isinstance(data, ImageFolder):  # which decodes its files itself
                warn_if_reversed(module.pipe, training.images)
        guard = assemble_guard(
            training, self.plan, self.detector, embedder=self.embedder, pipe=module.pipe,
            base=str(getattr(module, "base_id", "")), alignment=self.alignment,
        )  # fmt: skip
        run = GuardedRun(guard, responder, **self.options)
        if self.export_to:
            run.epochs.archive_in(Path(self.export_to), self.terms.epochs)
        return run
