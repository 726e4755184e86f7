"""Probes that cannot hurt the run they watch: what they touch is put back, and what fails becomes a gap.

Frameworks come and go around it: `lightning` and `accelerate` translate their hooks into `Watch.probe`.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.report import Report, measured
from ..exports.fingerprints import dataset_sha256
from ..guard.checkpoint_selection import Choice, SamplingMode
from ..guard.control_prompts import unknowable
from ..guard.guard import Guard
from ..guard.status import RunStatus, run_status
from ..pipelines.latent_model import LatentModel
from .distributed import Sharded, Team, TeamFailure
from .options import OnError, Precision

DTYPES: dict[Precision, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Watch:
    """A guard at work in somebody's training run.

    Every process of a distributed run holds one and calls `probe` at the same moments; their histories are the same.

    Args:
        guard: what to measure, on what.
        dtype: precision of the probes; None keeps the modules' own.
        on_error: "warn" reports a problem once and goes on, "raise" stops.

    Example:
        >>> watch = Watch(Guard(training, Structure()))                                    # doctest: +SKIP
        >>> watch.probe(pipe, epoch=0, train_step=100).basin.width                         # doctest: +SKIP
    """

    def __init__(self, guard: Guard, *, dtype: torch.dtype | None = None, on_error: OnError = "warn") -> None:
        self.guard, self.dtype, self.on_error = guard, dtype, on_error
        self.team = Team.current()
        self.other_data = False  # resumed with another training set: what was known is about other images
        self._told: set[str] = set()

    @property
    def history(self) -> list[Report]:
        """Every report so far; one with a `problem` is a gap."""
        return self.guard.history

    @property
    def measured(self) -> list[Report]:
        """The reports that are no gaps."""
        return measured(self.history)

    def probe(self, pipe: Any, *, epoch: int, train_step: int) -> Report | None:
        """Measures the pipeline's modules as they stand, and appends to the history.

        Args:
            pipe: a `StableDiffusionPipeline` around the modules in training.
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.

        Returns:
            What was measured, or the gap that stands in its place; None where the budget pays for nothing.
        """
        try:
            with untouched(pipe.unet, pipe.vae, pipe.text_encoder):
                return self._measure(LatentModel(pipe, dtype=self.dtype), epoch, train_step)
        except Exception as error:
            report = self.guard.miss(epoch, train_step, describe(error))
            self.complain(f"the probe of epoch {epoch} failed and is missing", error)
            return report

    def _measure(self, model: LatentModel, epoch: int, train_step: int) -> Report | None:
        """Measures together with the other processes; whoever fails, all of them raise."""
        try:
            return self.guard.measure(Sharded(model, self.team), epoch=epoch, train_step=train_step, team=self.team)
        except TeamFailure:
            raise  # the others know already
        except Exception as error:
            self.team.meet(error)
            raise

    def complain(self, what: str, error: Exception) -> None:
        """Reports a problem once for each kind, or raises it when so asked.

        Raises:
            Exception: `error`, with `on_error="raise"`.
        """
        if self.on_error == "raise":
            raise error
        if self.team.rank == 0 and describe(error) not in self._told:
            self._told.add(describe(error))
            warnings.warn(f"{what}; training goes on: {describe(error)}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The history and what it was measured with; texts only, so `torch.load(weights_only=True)` reads it."""
        return {"guard": self.guard.state_dict(), "settings": self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history of an interrupted run.

        Raises:
            ValueError: the state is damaged, or was measured with other settings. Other images are no error: what was
                known about the old ones is left behind, and the history begins with a gap that says so.
        """
        if not {"guard", "settings"} <= state.keys():
            raise ValueError(f"the checkpoint's guard state has keys {sorted(state)}; expected guard and settings")
        then, now = json.loads(state["settings"]), json.loads(self._settings())
        if then.get("training set") != now["training set"]:
            self._begin_anew(then, now)
            return
        changed = [f"{key} was {then[key]!r}, is {now[key]!r}" for key in now if key in then and then[key] != now[key]]
        if changed:
            raise ValueError(
                f"the checkpoint's history was measured otherwise: {'; '.join(changed)}. Its numbers could not be "
                "compared with new ones: resume with the settings of that run, or start a run of its own"
            )
        self.guard.load_state_dict(state["guard"])

    def _begin_anew(self, then: dict[str, Any], now: dict[str, Any]) -> None:
        told = (
            f"resumed with another training set ({str(then.get('training set'))[:12]} before, "
            f"{now['training set'][:12]} now): the base model was not measured on these images"
        )
        self.other_data = True
        self.guard.start_over(told)
        self.complain("the history so far is about other images and is left behind", ValueError(told))

    def standing(self, ship: Mapping[SamplingMode, Choice | None] | None = None) -> RunStatus:
        """Where the run stands; `ship` are the epochs to ship where they were chosen otherwise."""
        guard = self.guard
        known = unknowable(
            len(guard.training.captions),
            stand_in=guard.training.stand_in,
            drawn=guard.training.stand_in and guard.training.heldout_images is not None,
            samples=guard.plan.captions * guard.plan.seeds,
            alpha=guard.plan.alpha,
        )
        return run_status(self.history, guard.plan.alpha, known, ship)

    def _settings(self) -> str:
        training = self.guard.training
        images = dataset_sha256(training.images, training.captions)
        eye = self.guard.embedder.metric
        told = {"embedder": eye.embedder, "threshold": eye.threshold, "heldout": training.heldout}
        return json.dumps({**asdict(self.guard.plan), **told, "training set": images})


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Inside, the modules evaluate; afterwards their modes and all random streams are as they were before."""
    modes = {module: module.training for root in modules for module in root.modules()}
    with same_streams():
        try:
            for root in modules:
                root.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def same_streams() -> Iterator[None]:
    """Gives torch, numpy, python their random streams back, after errors too (Lightning's `isolate_rng` does not)."""
    on_cpu, in_numpy, in_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(on_cpu)
        torch.cuda.set_rng_state_all(on_gpus)
        np.random.set_state(in_numpy)
        random.setstate(in_python)


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's trained parameters, by name, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def holding(module: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the module holds these weights; the trained ones come back whatever happens."""
    trained = trained_weights(module)
    try:
        _load(module, weights)
        yield
    finally:
        _load(module, trained)


@torch.no_grad()
def _load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


def describe(error: Exception) -> str:
    """An error on one line, for people and for the history."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
