"""What training does when the guard finds it memorizing; what may be done says `options.Interventions`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from ..core.report import Report
from .guarded_run import Watch
from .loss_filters import Both, LargeGap, LossFilter, LowLoss
from .options import Interventions


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

    Found are those whose own caption brought them back. Of images whose caption was not sampled, those count whose gap
    has risen at least as much as the median of the found ones': a probe samples some captions, and to rest only those
    would please the probe.

    Args:
        report: the newest.
        rises: rise of each training caption's gap since the base model, by image.
    """
    found = {image.index for image in report.images if image.width}
    known = [rises[index] for index in found if index in rises]
    if not known:
        return found
    bar = max(statistics.median(known), 0.0)
    return found | {index for index, rise in rises.items() if rise > bar and index not in report.probed}


class Actor:
    """Carries out an `Interventions` on a run: one FineTune, one ImageFolder.

    Args:
        asked: what may be done.
        pl_module: has `filter`, read in each training step.
        data: has `act_on(rest, vary)`, see `ImageFolder.act_on`.
    """

    def __init__(self, asked: Interventions, pl_module: Any, data: Any) -> None:
        _require(asked, pl_module, data)
        self.asked, self.pl_module, self.data = asked, pl_module, data
        self.begun, self.images, self.factor = False, set[int](), 1.0
        self.filter = loss_filter(asked)
        if asked.filters_from == "start":
            pl_module.filter = self.filter

    def act(self, report: Report, rises: Mapping[int, float], optimizers: Any, schedulers: Any) -> str:
        """Does what was asked for at a breach; says what, in words."""
        self.begun = True
        self.pl_module.filter = self.filter
        self.images = memorized(report, rises) if self.asked.rests_images else set()
        self._apply()
        if self.asked.learning_rate is not None:
            self.factor *= self.asked.learning_rate
            slow(optimizers, schedulers, self.asked.learning_rate)
        return self.words

    def look_again(self, report: Report, rises: Mapping[int, float]) -> None:
        """Images that are no longer found get their turns back."""
        if self.begun and self.images:
            self.images &= memorized(report, rises)
            self._apply()

    @property
    def words(self) -> str:
        """What is being done, in one line."""
        told = []
        if self.images and self.asked.rest is not None:
            told.append(f"{len(self.images)} images keep {self.asked.rest:g} of their turns")
        if self.images and self.asked.vary_captions:
            told.append(f"{len(self.images)} images get a caption drawn anew each time")
        if self.factor < 1:
            told.append(f"learning rate times {self.factor:g}")
        if self.pl_module.filter is not None:
            told.append("examples are filtered by their loss or gap")
        return ", ".join(told) or "nothing yet"

    def _apply(self) -> None:
        rest = dict.fromkeys(self.images, self.asked.rest) if self.asked.rest is not None else {}
        if rest or self.images or self.asked.rests_images:
            self.data.act_on(rest, self.images if self.asked.vary_captions else set())

    def state_dict(self) -> dict[str, Any]:
        """What has been done so far."""
        state = {"begun": self.begun, "images": sorted(self.images), "factor": self.factor}
        return {**state, "filter": self.filter.state_dict() if self.filter else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with it; the optimizer's learning rate is in its own state."""
        self.begun, self.images, self.factor = state["begun"], set(state["images"]), state["factor"]
        if self.filter:
            self.filter.load_state_dict(state["filter"])
            if self.begun:
                self.pl_module.filter = self.filter
        self._apply()


def respond(trainer: Any, watch: Watch, actor: Actor | None, *, breached: bool, stop: bool) -> str:
    """Stops or acts on the newest report, if there is a breach; says what was done, in words."""
    report, rises = watch.history[-1], every_rise(watch.guard.latest.gaps, watch.guard.base.gaps)
    if not breached:
        if actor is not None:
            actor.look_again(report, rises)
        return ""
    if stop:
        trainer.should_stop = True
        return "training stops after this epoch"
    if actor is None:
        return "training goes on"
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return actor.act(report, rises, trainer.optimizers, schedulers)


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
    arXiv 2405.19458; how much it does here is in `recipes/results/acting_study.md`.
    """
    if settings.get("method") != "lora":
        return "next time: a LoRA of low rank has less room to memorize than every weight of the UNet"
    lora, changes = settings.get("lora", {}), []
    if lora.get("rank", 0) > 4:
        changes.append(f"rank {lora['rank']} could be 4")
    if not lora.get("dropout"):
        changes.append("dropout could be 0.1")
    return f"next time: {' and '.join(changes)}" if changes else ""


def _require(asked: Interventions, pl_module: Any, data: Any) -> None:
    lacking = []
    if asked.filters_losses and not hasattr(pl_module, "filter"):
        lacking.append("the LightningModule has no `filter`, which low_loss and large_gap need")
    if asked.rests_images and not hasattr(data, "act_on"):
        lacking.append("the datamodule has no `act_on`, which rest and vary_captions need")
    if asked.rest is not None and getattr(data, "buckets", False):
        lacking.append("rest and buckets do not go together: batches of one shape cannot be refilled from another")
    if asked.vary_captions and all(len(texts) < 2 for texts in getattr(getattr(data, "source", None), "captions", ())):
        lacking.append(
            "no image has a second caption to draw; give some (see `basinguard curate`), or leave vary_captions out"
        )
    if lacking:
        raise ValueError(f"BreachResponse(action='act'): {'; '.join(lacking)}")


def every_rise(now: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Rise of the gap since the base model of every training caption that was measured in both."""
    return {index: value - base[index] for index, value in now.items() if index in base}
