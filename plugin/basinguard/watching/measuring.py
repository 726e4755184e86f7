"""The checkpoints of a trainer, measured one by one as a guard in it would: same captions, same noise, same reports.

Runs as a process of its own (`python -m basinguard.watching`), which ends when nothing is left to measure:
whoever waits for checkpoints holds neither a model nor a framework.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from filelock import FileLock
from safetensors import SafetensorError

from ..core.report import Report
from ..core.text import one_line
from ..guard.status import RunStatus
from ..pipelines.distillation import distillation_note
from ..pipelines.families.registry import family_of, networks_of
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from ..training.guard_assembly import assemble_guard
from ..training.guarded_run import GuardedRun
from ..training.protocols import PipelineInTraining
from .checkpoint_pipeline import lora_fingerprint, opened
from .checkpoints import Checkpoint, is_as_described
from .page import write_page
from .request import (
    BASE,
    PROBE_LOCK,
    STATE,
    WatchRequest,
    add_event,
    checkpoints_from_json,
    display_name,
    events_of,
)
from .state import read_run_state, write_run_state
from .training_images import training_of


class CheckpointProbes:
    """Probes of one run's checkpoints, taken up where an earlier process left them.

    Args:
        request: what is measured, and with what.

    Raises:
        FileNotFoundError: no such data, base or prompts.
        ValueError: images that cannot be used.
    """

    def __init__(self, request: WatchRequest) -> None:
        self.request, self.folder = request, request.folder
        self.base = load_pipeline(request.base)
        training = training_of(request, LatentModel(self.base).resolution)
        self.base_name = str(Path(request.base).resolve()) if Path(request.base).exists() else request.base
        guard = assemble_guard(training, request.plan, request.detector, pipe=self.base, alignment="none")
        self.run = GuardedRun(guard)
        self.loggers: list[Any] = []

    def take_up(self) -> None:
        """Goes on where an earlier process ended; the first of all measures the base model.

        Raises:
            ValueError: what is there was measured otherwise.
        """
        self._take_history()
        past = events_of(self.folder)
        self.keys = {event["key"] for event in past if event.get("key")}
        self.weights = {event["weights"]: event["checkpoint"] for event in past if event.get("weights")}
        self.run.update_status()
        if not self.run.history:
            if note := distillation_note(self.base):
                self._event("note", BASE, problem=note)
            self._probe(self.base, BASE, epoch=-1, train_step=0)

    def _take_history(self) -> None:
        """Takes what earlier processes measured, and writes down the event that the last of them came to no more.

        Raises:
            ValueError: they measured another base, other images, or with other settings.
        """
        state = read_run_state(self.folder / STATE)
        if state is None:
            return
        anew = f"watch with that, or move {self.folder} elsewhere to begin anew"
        base = state.pop("base", self.base_name)
        if base != self.base_name:
            raise ValueError(f"base={self.request.base!r}: what was measured here so far is of {base!r}; {anew}")
        event = state.pop("event", None)
        try:
            self.run.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{error}; {anew}") from None
        if self.run.other_data:
            raise ValueError(f"data={str(self.request.data)!r}: what was measured here is of other images; {anew}")
        if event is not None and event not in events_of(self.folder):
            add_event(self.folder, event)

    def measure(self, checkpoint: Checkpoint) -> None:
        """Probes a checkpoint and writes down what came of it; whatever is wrong with it is one event.

        One that changes before it is read, or that is known by now, is passed over.
        """
        if checkpoint.key in self.keys:
            return
        name = display_name(checkpoint.path)
        epoch, train_step = place_of(checkpoint, self.run.history)
        newest = self.run.history[-1]
        if train_step <= newest.train_step and newest.epoch >= 0:
            what = (
                f"at update {train_step} is no further than what was measured last ({newest.train_step}); where this "
                f"is another run, move {self.folder} elsewhere"
            )
            self._event("skipped", name, problem=what, key=checkpoint.key)
            return
        try:
            weights = lora_fingerprint(checkpoint)
            if weights and weights in self.weights:
                same = self.weights[weights]
                self._event("skipped", name, problem=f"the same weights as {same}", key=checkpoint.key)
                return
            pipe = opened(checkpoint, self.request.base)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            self._event("failed", name, problem=one_line(str(error), 300), key=checkpoint.key)
            return
        if not is_as_described(checkpoint):
            self._event("waits", name, problem="was written anew or deleted while it was read")
            return
        more = {"key": checkpoint.key, "path": str(checkpoint.path), "kind": checkpoint.kind, "weights": weights}
        self._probe(pipe, name, epoch, train_step, **more)
        self.weights[weights] = name

    def _probe(self, pipe: Any, name: str, epoch: int, train_step: int, **more: str) -> None:
        denoiser = family_of(pipe).denoiser(pipe)
        denoiser.to(memory_format=torch.contiguous_format)  # as trainers have it: the same reports, to the digit
        for part in networks_of(pipe):
            part.requires_grad_(False)  # nothing is trained here, and so nothing is kept for an export
        module = PipelineInTraining(pipe, self.request.base)
        self.run.early = partial(self._tell_breach, name)
        report = self.run.probe(module, epoch=epoch, train_step=train_step, folder=self.folder)
        if report is None or report.problem:
            problem = "the budget pays for nothing" if report is None else report.problem
            self._event("failed", name, problem=problem, **more)
            return
        event = {"event": "measured", "checkpoint": name, **_numbers(report, self.run.status), **more}
        self._write_state(event)
        self._write_down(event)
        if self.run.status is not None:
            write_page(self.folder, self.run.history, self.run.status, self.request)
        self.run.log(module, self._tensorboard())
        self._write_state(event)  # once more: a budget counts what pictures cost

    def _tell_breach(self, name: str, report: Report) -> None:
        """Tells of a breach before exits are searched for: where there are copies, that takes longer than all else."""
        status = self.run.judge(report)
        if status.verdict.breaches():
            self._event("early", name, **_numbers(report, status))

    def _write_state(self, event: dict[str, Any]) -> None:
        write_run_state(self.folder / STATE, {**self.run.state_dict(), "base": self.base_name, "event": event})

    def _tensorboard(self) -> Sequence[Any]:
        if not self.loggers:
            from lightning.fabric.loggers.tensorboard import TensorBoardLogger

            self.loggers = [TensorBoardLogger(self.folder, name="tensorboard", version="")]
        return self.loggers

    def _event(self, what: str, name: str, **values: Any) -> None:
        self._write_down({"event": what, "checkpoint": name, **values})

    def _write_down(self, event: dict[str, Any]) -> None:
        add_event(self.folder, event)
        print(file=sys.stderr, flush=True)  # whoever waits tells of it now, not when this process ends


def _numbers(report: Report, status: RunStatus | None) -> dict[str, Any]:
    """What is told of a measured checkpoint."""
    named = {"risk": report.samples.risk, "taught": report.heldout.taught, "width": report.basin.width}
    judged: dict[str, Any] = {"verdict": "no verdict", "why": [], "breach": False, "forecast": "", "ship": None}
    if status is not None:
        judged = {
            "verdict": status.verdict.state, "why": list(status.verdict.evidence), "breach": status.verdict.breaches(),
            "forecast": str(status.forecast), "ship": None if status.plain is None else status.plain.epoch,
        }  # fmt: skip
    return {
        "epoch": report.epoch, "train_step": report.train_step, **judged, "seconds": round(report.seconds, 1),
        **{name: None if e is None else [e.value, e.low, e.high, e.n] for name, e in named.items()},
    }  # fmt: skip


def place_of(checkpoint: Checkpoint, history: Sequence[Report]) -> tuple[int, int]:
    """Epoch, counted from 0, and updates of a checkpoint; counted on where it does not tell."""
    newest = history[-1]
    epoch = newest.epoch + 1 if checkpoint.epoch is None else checkpoint.epoch - 1
    step = checkpoint.train_step
    return epoch, epoch + 1 if step is None and newest.train_step <= newest.epoch + 1 else _further(step, newest)


def _further(step: int | None, newest: Report) -> int:
    return newest.train_step + 1 if step is None else step


def measure_request() -> None:
    """Measures what standard input names: the request on a line, and on another, when it is known, the checkpoints.

    Ends early where nobody waits for it any more.
    """
    warnings.simplefilter("default")
    diffusers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    request, parent = WatchRequest.from_json(sys.stdin.readline()), os.getppid()
    try:
        probes = CheckpointProbes(request)
        pending = sys.stdin.readline()
        if not pending:
            return
        with FileLock(request.folder / PROBE_LOCK):  # one that an ended watch left behind has its say first
            probes.take_up()
            for checkpoint in checkpoints_from_json(pending):
                if os.getppid() == parent:
                    probes.measure(checkpoint)
    except (OSError, ValueError, ImportError) as error:
        print(one_line(str(error), 500), file=sys.stderr)
        raise SystemExit(2) from None
