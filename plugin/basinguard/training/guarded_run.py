"""A guard at work in somebody's training run, whatever the framework: probe, judge, keep weights, calibrate, export.

`callback` (Lightning) and `accelerate` (loops of one's own) translate their hooks into calls of a `GuardedRun`.
Probing never changes training (see `isolation`), and what fails becomes a missed report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..calibration.lessons import truth_of
from ..calibration.record_builder import Certificate
from ..calibration.terms import CalibrationTerms
from ..core.progress import shown
from ..core.record import Record
from ..core.report import Report, measured
from ..core.text import epoch_name
from ..exports.fingerprints import dataset_sha256
from ..guard.checkpoint_selection import SamplingMode
from ..guard.control_prompts import unknowable
from ..guard.guard import Guard
from ..guard.probe import Early
from ..guard.probe_costs import probe_limit
from ..guard.status import RunStatus, run_status, telling
from ..pipelines.distillation import distillation_note, fitting_terms
from ..pipelines.families.registry import networks_of
from ..pipelines.latent_model import LatentModel, smaller_side
from ..similarity.rulers import feature_sets, missing_ruler
from .best_weights import BestWeights
from .breach_responder import BreachResponder
from .complaints import Complaints, error_line
from .distributed import Team, measure_together
from .guard_options import OnError, ShippedEpoch
from .guarded_export import export_calibrated
from .isolation import averaged, holding, moved, parts_of, trained_weights, untouched
from .logging import log_report, write_guard_file
from .protocols import TrainedModule
from .run_epochs import RunEpochs

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

HISTORY_FILE = "guard.json"  # in the run's log directory
RETRY = "resume the last checkpoint, or call export again, to retry"


class GuardedRun:
    """Measures a module in training, judges it, holds the weights of the epochs to ship, calibrates and exports them.

    Every process of a distributed run holds one and makes the same calls at the same moments; they share the work of
    each probe, and their histories are the same. The first process alone writes, logs, holds weights and exports.

    Args:
        guard: what to measure, on what.
        ship: of the epochs that keep the risk, export the "best" by `checkpoint_selection.choose_checkpoint`, or the
            "last".
        responder: answers what was measured.
        on_error: see `Complaints`.

    Attributes:
        early: is given what is known of a model before its exits are searched for, see `Guard.measure`.
        status: verdict, forecast and the epochs to ship, as of the newest report; None where none could be made.
        epochs: those that the search at the end chooses among.
        certificate: of the newest export: its record, and everything that was tried.
        other_data: resumed with another training set: what was known is about other images.
        data: how other commands are told of the training images.

    Example:
        >>> run = GuardedRun(Guard(training, Structure()))                                 # doctest: +SKIP
        >>> run.probe(module, epoch=0, train_step=100).basin.width                         # doctest: +SKIP
    """

    def __init__(
        self,
        guard: Guard,
        responder: BreachResponder | None = None,
        *,
        ship: ShippedEpoch = "best",
        on_error: OnError = "warn",
    ) -> None:
        self.guard, self.responder = guard, responder
        autocast = guard.plan.autocast
        self.dtype: torch.dtype | None = getattr(torch, autocast) if autocast else None
        self.best_weights = BestWeights(guard.plan.alpha, ship)
        self.team = Team.current()
        self.status: RunStatus | None = None
        self.epochs = RunEpochs(self.best_weights)
        self.certificate: Certificate | None = None
        self.other_data, self.data = False, "DATA"
        self.early: Early | None = None
        self.complaints = Complaints(on_error, silent=self.team.rank > 0)

    @property
    def history(self) -> list[Report]:
        """Every report so far; epoch -1 is the untouched base model, one with a `problem` was missed."""
        return self.guard.history

    @property
    def measured(self) -> list[Report]:
        """The reports that were not missed."""
        return measured(self.history)

    def begin(self, train_step: int, ended: int | None = None) -> int | None:
        """Takes up a run at its first update, or a later one: what is not known about it is said.

        Args:
            train_step: updates so far.
            ended: an epoch at whose end it was interrupted, if it was and if that epoch was to be measured.

        Returns:
            The epoch to measure now, -1 for the base model; None where nothing is owed.
        """
        measured_before = {report.epoch for report in self.history}
        if self.other_data:
            self.best_weights.epochs.clear()
        if self.team.rank == 0:
            self.epochs.forget_after(-1 if self.other_data else train_step)
        if train_step > 0 and not self.history:
            problem = f"resumed at train step {train_step} without a history: the base model was not measured"
            self.guard.miss(-1, train_step, problem)
            self.complaints.add("the history has no base model", ValueError(problem))
        self.update_status()
        if not self.history:
            return -1
        return ended if measured_before and ended not in {-1, *measured_before} else None

    def notes(self, module: TrainedModule) -> list[str]:
        """What is good to know before the first update: guidance or disk or a ruler that the run lacks."""
        lacking = missing_ruler() if self.guard.plan.taught else ""
        return [note for note in (distillation_note(module.pipe), self.epochs.disk_note(module), lacking) if note]

    def probe(
        self,
        module: TrainedModule,
        *,
        epoch: int,
        train_step: int,
        folder: Path | None = None,
        loggers: Sequence[Any] = (),
    ) -> Report | None:
        """Measures the module as it stands, judges it, and keeps its weights where they are to be shipped.

        Args:
            module: what is trained; averaged weights are measured where it averages them.
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.
            folder: where `guard.json` goes, which holds every report, whatever ends the run.
            loggers: that get numbers and pictures, see `logging.log_report`.

        Returns:
            What was measured, or the missed report that stands in its place; None where the budget pays for nothing.
        """
        with averaged(module):
            report = self.measure(module.pipe, epoch=epoch, train_step=train_step)
            if report is None:
                return None
            self.update_status()
            if self.team.rank == 0:
                self._write(folder)
                if not report.problem:
                    self.best_weights.update(self.history, lambda: trained_weights(module))
                    with self.complaints.harmless(f"{epoch_name(epoch)} could not be kept for the search at the end"):
                        self.epochs.keep(module, self.history)
                    self.log(module, loggers)
        return report

    def measure(self, pipe: StableDiffusionPipeline, *, epoch: int, train_step: int) -> Report | None:
        """Appends to the history what a pipeline's modules do as they stand; arguments and result as of `probe`."""
        try:
            limit = probe_limit(self.guard.plan, self.guard.training)
            speaking = telling(self.history, self.status, epoch, limit=limit, silent=self.team.rank > 0)
            with speaking, untouched(*networks_of(pipe)):
                side = smaller_side(pipe, self.guard.training.images)
                model = LatentModel(pipe, dtype=self.dtype, resolution=side)
                place = {"epoch": epoch, "train_step": train_step}
                return measure_together(self.guard, model, self.team, **place, early=self.early)
        except Exception as error:
            report = self.guard.miss(epoch, train_step, error_line(error))
            self.complaints.add(f"the probe of {epoch_name(epoch)} failed and is missing", error)
            return report

    def respond(self, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> bool:
        """Answers the newest report; whether the fit is to stop."""
        return self.responder is not None and self.responder.respond(self, optimizers, schedulers)

    def judge(self, *more: Report) -> RunStatus:
        """Where the run stands now, or with more reports, in milliseconds."""
        training, plan, history = self.guard.training, self.guard.plan, [*self.history, *more]
        drawn = training.stand_in and training.heldout_images is not None
        count, samples = len(training.captions), plan.captions * plan.seeds
        limits = unknowable(count, stand_in=training.stand_in, drawn=drawn, samples=samples, alpha=plan.alpha)
        return run_status(history, plan.alpha, limits, self.best_weights.choices(history))

    def update_status(self) -> None:
        """Judges the run anew, without harm to it."""
        try:
            self.status = self.judge()
        except Exception as error:
            self.status = None
            self.complaints.add("there is no verdict on this epoch", error)

    def export(
        self, module: TrainedModule, out: Path, terms: CalibrationTerms, *, device: torch.device | None = None
    ) -> Record | None:
        """Calibrates the epochs that were kept and exports the product that was chosen, see `export_calibrated`.

        Args:
            module: its weights are as before afterwards.
            out: directory for the checkpoint; an earlier export there is replaced.
            terms: what is to be promised.
            device: where the module is moved to first, if anywhere.

        Returns:
            The record, in the first process of a run whose export succeeded.
        """
        if self.team.rank:
            return None
        self.certificate = None
        harmless = self.complaints.harmless(f"nothing was exported to {out}; {RETRY}")
        with shown(), harmless, untouched(*moved(parts_of(module), device)):
            truth = truth_of(self.guard.training, feature_sets())
            with self.epochs.series(module, self.measured[-1], dtype=self.dtype, anchor=terms.anchor) as series:
                terms = fitting_terms(module.pipe, terms)
                self.certificate = export_calibrated(self.guard, series, terms, out, truth=truth, data=self.data)
        return self.record

    @property
    def record(self) -> Record | None:
        """Of the newest export."""
        return None if self.certificate is None else self.certificate.record

    @contextmanager
    def shipped_weights(self, module: TrainedModule, how: SamplingMode = "guarded") -> Iterator[None]:
        """Inside, the module holds the weights of the epoch to ship for a way of sampling; in the first process."""
        with holding(module, self.best_weights.weights(how)):
            yield

    def _write(self, folder: Path | None) -> None:
        if folder is None or self.status is None:
            return
        with self.complaints.harmless(f"{folder / HISTORY_FILE} could not be written"):
            write_guard_file(folder / HISTORY_FILE, self.status, self.history, self.guard.training.image_sha256)

    def log(self, module: TrainedModule, loggers: Sequence[Any]) -> None:
        """Gives loggers numbers and pictures of the newest report and its module, see `log_report`."""
        what = f"pictures and scalars of {epoch_name(self.history[-1].epoch)}"
        with self.complaints.harmless(f"{what} could not be logged"), untouched(*parts_of(module)):
            side = smaller_side(module.pipe, self.guard.training.images)
            log_report(loggers, self.guard, LatentModel(module.pipe, dtype=self.dtype, resolution=side), self.status)

    def state_dict(self) -> dict[str, Any]:
        """The history, what it was measured with and how it was answered; `torch.load(weights_only=True)` reads it."""
        answers = self.responder.state_dict() if self.responder else {}
        return {"guard": self.guard.state_dict(), "settings": self._settings(), **answers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history of an interrupted run.

        Raises:
            ValueError: the state is damaged, or was measured with other settings. Other images are no error: what was
                known about the old ones is left behind, and the history begins with a missed report that says so.
        """
        if not {"guard", "settings"} <= state.keys():
            raise ValueError(f"the checkpoint's guard state has keys {sorted(state)}; expected guard and settings")
        then, now = json.loads(state["settings"]), json.loads(self._settings())
        if then.get("training set") != now["training set"]:
            self._begin_anew(str(then.get("training set")), now["training set"])
            return
        changed = [f"{key} was {then[key]!r}, is {now[key]!r}" for key in now if key in then and then[key] != now[key]]
        if changed:
            raise ValueError(
                f"the checkpoint's history was measured otherwise: {'; '.join(changed)}. Its numbers could not be "
                "compared with new ones: resume with the settings of that run, or start a run of its own"
            )
        self.guard.load_state_dict(state["guard"])
        if self.responder:
            self.responder.load_state_dict(state)

    def _begin_anew(self, then: str, now: str) -> None:
        problem = (
            f"resumed with another training set ({then[:12]} before, {now[:12]} now): the base model was not measured "
            "on these images"
        )
        self.other_data = True
        self.guard.start_over(problem)
        self.complaints.add("the history so far is about other images and is left behind", ValueError(problem))

    def _settings(self) -> str:
        training, metric = self.guard.training, self.guard.embedder.metric
        images = dataset_sha256(training.images, training.captions)
        settings = {"embedder": metric.embedder, "threshold": metric.threshold, "heldout": training.heldout}
        return json.dumps({**asdict(self.guard.plan), **settings, "training set": images})
