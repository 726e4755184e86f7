"""What to measure, on what, and what it means: the guard without any framework.

A `Guard` is given the training images and captions once; `measure` looks at a model and returns a `Report`. Every
epoch uses the same captions, seeds and noise (common random numbers), so a difference between two reports is a
difference between two models. A budget that cannot pay for everything buys the gap of every caption first, and samples
captions in turns; a report holds what was measured of this very model, and None for the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import GuidedModel, pairs_of, run_branch, run_trunk
from ..core import seeds as seed_table
from ..core.metric import Match
from ..core.report import Report
from ..diffusion.model import Model
from ..diffusion.sampling import path_of
from ..similarity.copy_detector import CopyDetector
from ..similarity.embedder import Embedder
from .budget import EVALUATIONS, STAGES, Account, Budget, Menu, buy, rotated
from .measured_model import Instruments, ScoreAlignment, ScoreFidelity, guided_model
from .plan import ProbePlan
from .probe import SEEDS, Probe
from .scope import Scope, Table
from .training_set import TrainingSet

Agree = Callable[[int], int]
NANO = 1e9  # processes agree on whole numbers


class Team(Protocol):
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
        score_fidelity: how far each image [B, 3, H, W] looks like the subject or style that is taught, [B], higher is
            better; asked about samples of held-out prompts.

    Attributes:
        history: every report so far.
        null, latest: what the base model and the last measured one were found to do.
    """

    def __init__(
        self,
        training: TrainingSet,
        embedder: Embedder,
        plan: ProbePlan | None = None,
        score_alignment: ScoreAlignment | None = None,
        score_fidelity: ScoreFidelity | None = None,
    ) -> None:
        self.training, self.embedder, self.plan = training, embedder, plan or ProbePlan()
        self.score_alignment, self.score_fidelity = score_alignment, score_fidelity
        if self.plan.captions > len(training.captions):
            raise ValueError(
                f"the probe asks for {self.plan.captions} captions, but the training set has {len(training.captions)}; "
                f"set captions={len(training.captions)} or less"
            )
        self.copy_detector = CopyDetector(training.images, training.captions, embedder)
        self.history: list[Report] = []
        self.budget, self.account = Budget.parse(self.plan.budget), Account()
        self.null, self.latest = Table(), Table()
        self._turns = {"gaps": 0, "sampled": 0}  # captions that budgets have paid for so far
        self._left_at = time.monotonic()

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

    def probed_captions(self) -> list[str]:
        """The training captions that a probe without a budget samples, spread evenly over the set."""
        return [self.training.captions[i] for i in self._spread()]

    def measure(self, model: Model, *, epoch: int, train_step: int, team: Team | None = None) -> Report | None:
        """Measures the model once and appends the report to `history`; on an error nothing has changed.

        The base model is measured in full, whatever the budget; every later probe is paid from it.

        Args:
            model: what is measured.
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.
            team: the processes that measure together; None for this one alone.

        Returns:
            The report; None when the budget cannot pay for anything useful.

        Raises:
            ValueError: training images smaller than the model's.
            FloatingPointError: the model returned a value that is not finite.
        """
        draft = copy(self)
        draft.account, draft._turns = self.account.copy(), dict(self._turns)
        report = draft._measure(model, epoch, train_step, team.least if team else int)
        if team is not None:
            team.meet()  # raises here too where another process failed: their next probes stay the same
        vars(self).update(vars(draft))
        if report is not None:
            self.history.append(report)
        return report

    def miss(self, epoch: int, train_step: int, problem: str) -> Report:
        """Appends the report that a failed probe leaves; its time is not training's."""
        self.history.append(Report.missed(epoch, train_step, problem))
        self._left_at = time.monotonic()
        return self.history[-1]

    def start_over(self, problem: str) -> None:
        """Forgets the history; the base model's missed report says why."""
        self.history = [Report.missed(-1, 0, problem)]

    @torch.no_grad()
    def _measure(self, model: Model, epoch: int, train_step: int, agree: Agree) -> Report | None:
        start, report = time.monotonic(), None
        _check_size(self.training, model)
        if epoch < 0 and self._needs_control_images(model):
            self._take_control_images(self._draw_control_images(model))
        menu = self._menu(model)
        scope = self._scope(menu, epoch, start, agree)
        if scope is not None:
            instruments = Instruments(
                self.copy_detector, self.training, self.plan, self.score_alignment, self.score_fidelity
            )
            probe = Probe(instruments, model, scope, None if epoch < 0 else self.null)
            report = probe.report(epoch, train_step, start)
            self.null, self.latest = probe.base, probe.now
            self.account.learn(probe.seconds, _rows(menu, scope, probe.count.rows))
        self._pay(time.monotonic() - start, epoch)
        return report

    @contextmanager
    def charged(self, name: str) -> Iterator[None]:
        """Inside, time is the probe's and not training's; what it took is remembered as the price of `name`."""
        start = time.monotonic()
        yield
        self.account.prices[name] = time.monotonic() - start
        self._pay(self.account.prices[name], self.history[-1].epoch)

    def affords(self, name: str) -> bool:
        """Whether what is left of a budget of time pays for one more picture; the base model's are free."""
        if self.budget is None or self.budget.share is None or self.history[-1].epoch < 0:
            return True
        return self.account.prices.get(name, 0.0) <= self.account.balance

    def _pay(self, seconds: float, epoch: int) -> None:
        self.account.balance -= seconds if epoch >= 0 else 0.0
        self._left_at = time.monotonic()

    def _menu(self, model: Model) -> Menu:
        """What a probe of this model may consist of."""
        path = path_of(model.schedule, model.schedule.grid(self.plan.timesteps), self.plan.solver)
        images = min(self.plan.critical_scales, len(self.training.captions))
        held = 0 if self.training.heldout_images is None else min(self.plan.critical_scales, len(self.training.heldout))
        timed = self.budget is not None and self.budget.share is not None
        return Menu(
            self.plan.captions,
            len(self.training.captions),
            self.plan.seeds,
            evaluations=len(path.nodes),
            heldout=len(self.training.heldout),
            pool=max(SEEDS, self.plan.seeds),
            scales=images + held,
            unit=max(1, self.plan.chunk // 8) if timed else 1,  # batches are padded: a row more may cost nothing
        )

    def _needs_control_images(self, model: Model) -> bool:
        training = self.training
        needed = self.plan.critical_scales > 0 and training.borrowed and training.heldout_images is None
        return needed and bool(training.heldout) and hasattr(model, "encode")

    def _draw_control_images(self, model: Model) -> Tensor:
        """Images that the base model itself draws for the held-out prompts, [M, 3, H, W] uint8, by plain CFG."""
        prompts = self.training.heldout
        pairs = pairs_of(len(prompts), [seed_table.CONTROL_IMAGES], 1, model.latent_shape)
        images = model.decode(run_plain(self.guided_model(model, prompts), pairs).ends)
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _take_control_images(self, pixels: Tensor) -> None:
        self.training = replace(self.training, heldout_images=pixels.float() / 255)

    def _scope(self, menu: Menu, epoch: int, now: float, agree: Agree) -> Scope | None:
        """What this probe covers, or None when it cannot be paid."""
        everything = tuple(range(len(self.training.captions)))
        if self.budget is None or epoch < 0:
            return Scope(tuple(self._spread()), everything, self.plan.seeds)
        allowance, prices = self._means(now, agree)
        bought = buy(allowance, menu, prices)
        if bought is None:
            return None
        return Scope(
            self._next("sampled", bought.captions),
            everything if bought.gaps == len(everything) else self._next("gaps", bought.gaps),
            bought.seeds,
            bought.resolution,
            heldout=bought.heldout,
            scales=bought.scales > 0,
            thorough=False,
            precision=bought.precision(self.plan.timesteps, len(everything)),
        )

    def _means(self, now: float, agree: Agree) -> tuple[float, Mapping[str, float]]:
        """What this probe may spend, and what each stage costs in that currency; the same in all processes."""
        if self.budget is None or self.budget.share is None:
            return float(self.budget.evals or 0) if self.budget else 0.0, EVALUATIONS
        self.account.allow(self.budget.share * (now - self._left_at))
        allowance = agree(round(self.account.spendable() * NANO)) / NANO
        return allowance, {stage: -agree(-round(self.account.price(stage) * NANO)) / NANO for stage in STAGES}

    def _next(self, what: str, count: int) -> tuple[int, ...]:
        """The captions whose turn it is."""
        begin = self._turns[what]
        self._turns[what] += count
        return tuple(rotated(len(self.training.captions), count, begin))

    def _spread(self) -> list[int]:
        return np.linspace(0, len(self.training.captions) - 1, self.plan.captions).round().astype(int).tolist()

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
            pairs_of(len(rows), [seed_table.PROBE], 1, model.latent_shape),
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
        memory = {"null": asdict(self.null), "account": asdict(self.account), "turns": self._turns}
        state: dict[str, Any] = {"history": [report.to_json() for report in self.history], "memory": json.dumps(memory)}
        if self.training.borrowed and self.training.heldout_images is not None:
            state["control images"] = (self.training.heldout_images * 255).round().to(torch.uint8)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the history of an interrupted run.

        Raises:
            ValueError: the state has no history, or one that does not parse.
        """
        if "history" not in state:
            raise ValueError(f"guard state has no 'history'; its keys are {sorted(state)}")
        self.history = [Report.from_json(text) for text in state["history"]]
        memory = json.loads(state.get("memory", "{}"))
        tables = memory.get("null", {})
        self.null = Table(**{name: {int(i): float(v) for i, v in table.items()} for name, table in tables.items()})
        if "control images" in state and self.training.borrowed:
            self._take_control_images(state["control images"])
        self.account, self._turns = Account(**memory.get("account", {})), {**self._turns, **memory.get("turns", {})}
        self._left_at = time.monotonic()


def _rows(menu: Menu, scope: Scope, evaluated: Mapping[str, int]) -> dict[str, int]:
    """Rows that each stage put through the network, padding included where the menu tells it."""
    pairs = len(scope.sampled) * scope.seeds
    searched = evaluated.get("exits", 0) - menu.evaluations * min(menu.pool, pairs)
    return {
        "gap": menu.gap(len(scope.gaps), scope.heldout),
        "samples": menu.samples(pairs),
        "exits": menu.trunk(pairs) + max(0, searched),
        "scales": evaluated.get("scales", 0),
    }


def _check_size(training: TrainingSet, model: Model) -> None:
    side = getattr(model, "resolution", None)
    if side is not None and min(training.images.shape[-2:]) < side:
        height, width = training.images.shape[-2:]
        raise ValueError(
            f"training images of {width}x{height} pixels for a model that draws {side}x{side}: a sample could not be "
            f"compared with them. Load them at {side} pixels, or measure with LatentModel(pipe, resolution={width})"
        )
