"""What training does when the guard finds it memorizing, as `options.BreachResponse` asks for."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.report import Report
from ..core.text import epoch_name
from .guard_options import BreachResponse, Interventions
from .loss_filters import Both, LargeGap, LossFilter, LowLoss
from .protocols import CaptionedImages, TrainedModule

if TYPE_CHECKING:
    from .guarded_run import GuardedRun


def loss_filter(interventions: Interventions) -> LossFilter | None:
    """The loss filter asked for."""
    filters: list[LossFilter] = []
    if interventions.low_loss is not None:
        filters.append(LowLoss(interventions.low_loss))
    if interventions.large_gap is not None:
        filters.append(LargeGap(interventions.large_gap))
    return Both(filters) if filters else None


def memorized(report: Report, rises: Mapping[int, float]) -> set[int]:
    """Images that a report finds memorized, and unsampled ones that look alike.

    These are the images whose own caption brought them back. Of images whose caption was not sampled, those count whose
    gap has risen at least as much as the median of the former: a probe samples some captions, and to rest only those
    would please the probe.

    Args:
        report: the newest.
        rises: rise of each training caption's gap since the base model, by image.
    """
    copied = {image.index for image in report.images if image.width}
    own_rises = [rises[index] for index in copied if index in rises]
    if not own_rises:
        return copied
    bar = max(statistics.median(own_rises), 0.0)
    return copied | {index for index, rise in rises.items() if rise > bar and index not in report.probed}


class AppliedInterventions:
    """Carries out an `Interventions` on a run.

    Args:
        interventions: what may be done.
        module: has `filter`, read in each training step.
        data: has `act_on(rest, vary)`, see `ImageFolder.act_on`.

    Attributes:
        started: whether there has been a breach.
        images: that are treated otherwise.
        factor: of the learning rate, so far.
        filter: of the loss.
    """

    def __init__(self, interventions: Interventions, module: Any, data: Any) -> None:
        _require(interventions, module, data)
        self.interventions, self.module, self.data = interventions, module, data
        self.started, self.images, self.factor = False, set[int](), 1.0
        self.filter = loss_filter(interventions)
        if interventions.filters_from == "start":
            module.filter = self.filter

    def start(
        self, report: Report, rises: Mapping[int, float], optimizers: Sequence[Any], schedulers: Sequence[Any]
    ) -> None:
        """Does what is asked for at a breach."""
        self.started = True
        self.module.filter = self.filter
        self.images = memorized(report, rises) if self.interventions.rests_images else set()
        self._treat_images()
        if self.interventions.learning_rate is not None:
            self.factor *= self.interventions.learning_rate
            slow(optimizers, schedulers, self.interventions.learning_rate)

    def release(self, report: Report, rises: Mapping[int, float]) -> None:
        """Images that are no longer found memorized get their turns back."""
        if self.started and self.images:
            self.images &= memorized(report, rises)
            self._treat_images()

    def __str__(self) -> str:
        measures = []
        if self.images and self.interventions.rest is not None:
            measures.append(f"{len(self.images)} images keep {self.interventions.rest:g} of their turns")
        if self.images and self.interventions.vary_captions:
            measures.append(f"{len(self.images)} images get a caption drawn anew each time")
        if self.factor < 1:
            measures.append(f"learning rate times {self.factor:g}")
        if self.module.filter is not None:
            measures.append("examples are filtered by their loss or gap")
        return ", ".join(measures) or "nothing yet"

    def _treat_images(self) -> None:
        if self.interventions.rests_images:
            share, vary = self.interventions.rest, self.interventions.vary_captions
            rest = {} if share is None else dict.fromkeys(self.images, share)
            self.data.act_on(rest, self.images if vary else set())

    def state_dict(self) -> dict[str, Any]:
        """What has been done so far."""
        state = {"started": self.started, "images": sorted(self.images), "factor": self.factor}
        return {**state, "filter": self.filter.state_dict() if self.filter else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with it; the optimizer's learning rate is in its own state."""
        self.started, self.images, self.factor = state["started"], set(state["images"]), state["factor"]
        if self.filter:
            self.filter.load_state_dict(state["filter"])
            if self.started:
                self.module.filter = self.filter
        self._treat_images()


class BreachResponder:
    """Answers each report of a run as a `BreachResponse` says; every process does the same.

    Raises:
        ValueError: the module or the images do not allow what is asked for.
    """

    def __init__(self, response: BreachResponse, module: TrainedModule, data: CaptionedImages) -> None:
        self.response, self.module = response, module
        interventions = response.interventions
        self.applied = AppliedInterventions(interventions, module, data) if interventions else None
        self._warned = False

    def respond(self, run: GuardedRun, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> bool:
        """Answers the newest report; says so once, in the first process.

        Returns:
            Whether the fit is to stop.
        """
        if run.status is None or run.status.verdict.level < 0:
            return False
        report, rises = run.history[-1], every_rise(run.guard.latest.gaps, run.guard.base.gaps)
        breached = run.status.verdict.breaches(self.response.watches)
        if not breached:
            if self.applied is not None:
                self.applied.release(report, rises)
            return False
        if self.applied is not None:
            self.applied.start(report, rises, optimizers, schedulers)
        if not self._warned and run.team.rank == 0:
            hint = advice(getattr(self.module, "hparams", {}))
            warnings.warn(f"{epoch_name(report.epoch)} is {run.status.verdict}; {self}; {hint}", stacklevel=2)
        self._warned = True
        return self.response.action == "stop"

    def state_dict(self) -> dict[str, Any]:
        """What interventions have done so far."""
        return {"interventions": self.applied.state_dict()} if self.applied else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with it."""
        if self.applied and "interventions" in state:
            self.applied.load_state_dict(state["interventions"])

    def __str__(self) -> str:
        if self.response.action == "stop":
            return "training stops after this epoch"
        return "training goes on" if self.applied is None else str(self.applied)


def slow(optimizers: Any, schedulers: Any, factor: float) -> None:
    """Multiplies the learning rates of optimizers and of the schedules that drive them."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= factor
            if "initial_lr" in group:
                group["initial_lr"] *= factor
    for scheduler in schedulers:
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]


def advice(settings: Mapping[str, Any]) -> str:
    """What could be changed in the next run, for settings as `FineTune` names them; "" where nothing is known.

    Rank and dropout of a running adapter cannot be changed. Lower rank memorizes later: MemControl, Dutt et al.,
    arXiv 2405.19458; how much it does here is in `recipes/results/acting_study.md`, and how much rarer high noise does
    in `recipes/results/training_variants.md`.
    """
    lora, changes = settings.get("lora", {}), []
    if settings.get("loss", {}).get("high_noise") == 1:
        changes.append("loss.high_noise could be 0.25")
    if settings.get("method") != "lora":
        changes.append("a LoRA of low rank has less room to memorize than every weight of the UNet")
    elif lora.get("rank", 0) > 4:
        changes.append(f"rank {lora['rank']} could be 4")
    if settings.get("method") == "lora" and not lora.get("dropout"):
        changes.append("dropout could be 0.1")
    return f"next time: {' and '.join(changes)}" if changes else ""


def _require(interventions: Interventions, module: Any, data: Any) -> None:
    lacking = []
    if interventions.filters_losses and not hasattr(module, "filter"):
        lacking.append("the LightningModule has no `filter`, which low_loss and large_gap need")
    if interventions.rests_images and not hasattr(data, "act_on"):
        lacking.append("the datamodule has no `act_on`, which rest and vary_captions need")
    if interventions.rest is not None and getattr(data, "buckets", False):
        lacking.append("rest and buckets do not go together: batches of one shape cannot be refilled from another")
    if interventions.vary_captions and all(
        len(texts) < 2 for texts in getattr(getattr(data, "source", None), "captions", ())
    ):
        lacking.append(
            "no image has a second caption to draw; give some (see `basinguard curate`), or leave vary_captions out"
        )
    if lacking:
        raise ValueError(f"BreachResponse(action='act'): {'; '.join(lacking)}")


def every_rise(now: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Rise of the gap since the base model of every training caption that was measured in both."""
    return {index: value - base[index] for index, value in now.items() if index in base}
