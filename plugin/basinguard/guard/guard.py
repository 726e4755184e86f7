"""What to measure, on what, and what it means: the guard without any framework.

A `Guard` is given the training images and captions once; `measure` probes a model and returns a `Report`. Every
epoch uses the same captions, seeds and noise (common random numbers), so a difference between two reports is a
difference between two models. A budget that cannot pay for everything buys the gap of every caption first, and samples
captions in turns; a report holds what was measured of this very model, and None for the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import GuidedModel, pairs_of, run_branch, run_trunk
from ..core import seeds as seed_table
from ..core.metric import Match
from ..core.report import Report
from ..diffusion.model import Model
from ..similarity.copy_detector import CopyDetector
from ..similarity.embedder import Embedder
from ..similarity.feature_sets import FeatureSet
from .coverage import Agree, Spending
from .measured_model import Instruments, ScoreAlignment, guided_model
from .measures import Measures
from .plan import ProbePlan
from .pooled_report import pooled_report
from .probe import Early, Probe
from .taught_ledger import TaughtLedger, refuse_copied_truth, taught_prompts, taught_samples
from .training_set import TrainingSet


class TeamProtocol(Protocol):
    """Processes that measure together; `training.distributed.Team` is one."""

    def least(self, number: int) -> int:
        """The smallest of a number that each process knows its own of; all must buy the same probe."""
        ...

    def meet(self) -> object:
        """Waits for the others; raises where one of them failed."""
        ...


class Guard:
    """Measures a model against one training set, epoch after epoch.

    Args:
        training: images, captions and held-out prompts.
        embedder: says what is the same image, with its threshold.
        plan: how much to measure.
        score_alignment: agreement of images [B, 3, H, W] and captions, [B], higher is better; None where no such model
            exists.
        feature_sets: the rulers of what was taught, as `rulers.feature_sets` gives them; none leaves it unmeasured.

    Attributes:
        history: every report so far.
        base, latest: what the base model and the last measured one were found to do.
    """

    def __init__(
        self,
        training: TrainingSet,
        embedder: Embedder,
        plan: ProbePlan | None = None,
        score_alignment: ScoreAlignment | None = None,
        feature_sets: Sequence[FeatureSet] = (),
    ) -> None:
        self.training, self.embedder, self.plan = training, embedder, plan or ProbePlan()
        self.score_alignment = score_alignment
        if self.plan.captions > len(training.captions):
            raise ValueError(
                f"the probe asks for {self.plan.captions} captions, but the training set has {len(training.captions)}; "
                f"set captions={len(training.captions)} or less"
            )
        self.copy_detector = CopyDetector(training.images, training.captions, embedder)
        self.ledger = TaughtLedger(training, feature_sets) if feature_sets else None
        if self.ledger is not None:
            refuse_copied_truth(training, self.copy_detector)
        self.history: list[Report] = []
        self.spending = Spending(self.plan)
        self.base, self.latest = Measures(), Measures()

    @property
    def gallery(self) -> Tensor:
        """Embeddings of the training images, [N, D]."""
        return self.copy_detector.gallery

    def matches(self, images: Tensor) -> list[Match]:
        """The nearest training image of each sample."""
        return self.copy_detector.matches(images)

    def is_copy(self, images: Tensor) -> Tensor:
        """Whether each sample reproduces some training image, [B] bool."""
        return self.copy_detector.is_copy(images)

    def is_own_copy(self, matches: Sequence[Match], captions: Sequence[str]) -> Tensor:
        """Whether each sample reproduces the training image of its own caption (or a duplicate of it), [B] bool."""
        return self.copy_detector.is_own_copy(matches, captions)

    def guided_model(self, model: Model, prompts: Sequence[str]) -> GuidedModel:
        """The model with these prompts, as `basin` samples it."""
        return guided_model(model, prompts, self.plan)

    def measure(
        self,
        model: Model,
        *,
        epoch: int,
        train_step: int,
        team: TeamProtocol | None = None,
        early: Early | None = None,
    ) -> Report | None:
        """Measures the model once and appends the report to `history`; on an error nothing has changed.

        The base model is measured in full, whatever the budget; every later probe is paid from it.

        Args:
            model: what is measured.
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.
            team: the processes that measure together; None for this one alone.
            early: is given what is known before exits are searched for, which is most of the work where there are
                copies: a report whose basin is empty, and which is not in the history.

        Returns:
            The report; None when the budget cannot pay for anything useful.

        Raises:
            ValueError: training images smaller than the model's.
            FloatingPointError: the model returned a value that is not finite.
        """
        draft = copy(self)
        draft.spending = self.spending.copy()
        report = draft._measure(model, epoch, train_step, team.least if team else int, early)
        if team is not None:
            team.meet()  # raises here too where another process failed: their next probes stay the same
        vars(self).update(vars(draft))
        if report is not None:
            self.history.append(report)
        return report

    def miss(self, epoch: int, train_step: int, problem: str) -> Report:
        """Appends the report that a failed probe leaves; its time is not training's."""
        self.history.append(Report.missed(epoch, train_step, problem))
        self.spending.left_at = time.monotonic()
        return self.history[-1]

    def start_over(self, problem: str) -> None:
        """Forgets the history; the base model's missed report says why."""
        self.history = [Report.missed(-1, 0, problem)]

    @torch.no_grad()
    def _measure(self, model: Model, epoch: int, train_step: int, agree: Agree, early: Early | None) -> Report | None:
        start, report = time.monotonic(), None
        _check_size(self.training, model)
        if epoch < 0 and self._needs_control_images(model):
            self._take_control_images(self._draw_control_images(model))
        costs = self.spending.costs(model, self.training, self._taught_samples())
        coverage = self.spending.coverage(costs, epoch, start, agree)
        if coverage is not None:
            instruments = Instruments(self.copy_detector, self.training, self.plan, self.score_alignment, self.ledger)
            probe = Probe(instruments, model, coverage, None if epoch < 0 else self.base)
            report = self._pooled(probe.report(epoch, train_step, start, early and (lambda r: early(self._pooled(r)))))
            self.base, self.latest = probe.base, probe.now
            self.spending.learn(costs, coverage, probe.seconds, probe.count.rows)
        self.spending.pay(time.monotonic() - start, epoch)
        return report

    def _pooled(self, report: Report) -> Report:
        """Within a budget samples are few, and those of earlier probes count too."""
        return pooled_report(report, self.history) if self.spending.budget and report.epoch >= 0 else report

    def charged(self, name: str) -> AbstractContextManager[None]:
        """Inside, time is the probe's and not training's; what it took is remembered as the price of `name`."""
        return self.spending.charged(name, self.history[-1].epoch)

    def affords(self, name: str) -> bool:
        """Whether what is left of a budget of time pays for one more picture."""
        return self.spending.affords(name, self.history[-1].epoch)

    def _taught_samples(self) -> int:
        """Samples of held-out prompts that a probe draws only to see what was taught."""
        if self.ledger is None or taught_prompts(self.training) != self.training.heldout:
            return 0
        prompts, each = taught_samples(self.training)
        return len(prompts) * each

    def _needs_control_images(self, model: Model) -> bool:
        training = self.training
        needed = self.plan.critical_scales > 0 and training.stand_in and training.heldout_images is None
        return needed and bool(training.heldout) and hasattr(model, "encode")

    def _draw_control_images(self, model: Model) -> Tensor:
        """Images that the base model itself draws for the held-out prompts, [M, 3, H, W] uint8, by plain CFG."""
        prompts = self.training.heldout
        pairs = pairs_of(len(prompts), [seed_table.CONTROL_IMAGES], 1, model.latent_shape)
        images = model.decode(run_plain(self.guided_model(model, prompts), pairs).ends)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _take_control_images(self, pixels: Tensor) -> None:
        self.training = replace(self.training, heldout_images=pixels.float() / 255)

    @torch.no_grad()
    def show(
        self, model: Model, transition: float | None, count: int = 4
    ) -> tuple[dict[str, Tensor], list[str], dict[str, list[bool]]]:
        """Training image, plain CFG and guarded sample of a few captions, with the copies marked.

        The guarded column has no guidance above `transition`; it is left out when that is None.
        """
        rows = list(range(min(count, len(self.training.captions))))
        captions = [self.training.captions[i] for i in rows]
        guided, pairs = (
            self.guided_model(model, captions),
            pairs_of(len(rows), seed_table.RANGES["probe"], 1, model.latent_shape, stride=self.plan.seeds),
        )
        columns = {"training image": self.training.images[rows]}
        columns["plain CFG"] = model.decode(run_plain(guided, pairs).ends)
        if transition is not None:
            index = torch.zeros_like(pairs.prompt) + int((guided.timesteps > transition).sum())
            states = run_trunk(guided, pairs).at(torch.arange(len(rows)), index)
            columns["guarded"] = model.decode(run_branch(guided, states, pairs.prompt, index))
        marks = {name: self.is_copy(images).tolist() for name, images in columns.items() if name != "training image"}
        return columns, captions, marks

    def state_dict(self) -> dict[str, Any]:
        """The history and what it is compared with, as plain JSON text; control images that were drawn as bytes."""
        memory = {"base": asdict(self.base), **self.spending.state_dict()}
        state: dict[str, Any] = {"history": [report.to_json() for report in self.history], "memory": json.dumps(memory)}
        if self.training.stand_in and self.training.heldout_images is not None:
            state["control images"] = (self.training.heldout_images * 255).round().to(torch.uint8)
        if self.ledger is not None:
            state["taught"] = self.ledger.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history of an interrupted run.

        Raises:
            ValueError: the state has no history or no memory, or one that does not parse.
        """
        for key in ("history", "memory"):
            if key not in state:
                raise ValueError(f"guard state has no {key!r}, its keys are {sorted(state)}: begin the run anew")
        self.history = [Report.from_json(text) for text in state["history"]]
        memory = json.loads(state["memory"])
        tables = memory.get("base", {})
        self.base = Measures(**{name: {int(i): float(v) for i, v in table.items()} for name, table in tables.items()})
        if "control images" in state and self.training.stand_in:
            self._take_control_images(state["control images"])
        if self.ledger is not None:
            self.ledger.load_state_dict(state.get("taught", {}))
        self.spending.load_state_dict(memory)


def _check_size(training: TrainingSet, model: Model) -> None:
    side = getattr(model, "resolution", None)
    if side is not None and min(training.images.shape[-2:]) < side:
        height, width = training.images.shape[-2:]
        raise ValueError(
            f"training images of {width}x{height} pixels for a model that draws {side}x{side}: a sample could not be "
            f"compared with them. Load them at {side} pixels, or measure with LatentModel(pipe, resolution={width})"
        )
