"""`MemorizationGuard`: the guard as a Lightning callback. Hooks of a few lines around `basinguard.guard`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torchvision.transforms.functional import pil_to_tensor

from ..calibrate import Candidate
from ..certify import Terms
from ..guard import Guard, Plan, TrainingSet
from ..plots import contact_sheet, curve_figure, history_figure
from ..records import Estimate, Record, Report
from ..similarity.structure import Structure
from .diffusers import LatentModel
from .shipping import alignment_for, ship

MEASURED = (
    *("risk", "width", "exit", "gap", "gap_heldout", "similarity_p95", "similarity_heldout"),
    *("risk_uncond", "alignment"),
)


class MemorizationGuard(pl.Callback):
    """Measures, before training and after each epoch, how far the model has fallen into its training images.

    Scalars `guard/...` can be monitored by `EarlyStopping` and `ModelCheckpoint` in the same epoch. TensorBoard also
    gets the basin curve and a contact sheet; other loggers get the scalars; no logger works too. Probing never touches
    training: random number streams, module modes and weights are left as they were.

    Args:
        heldout: prompts the model is not trained on, the control group.
        every_n_epochs: probe after every n-th epoch.
        captions: how many training captions to sample at each probe.
        seeds: samples for each of them.
        timesteps: sampling steps.
        scale: guidance scale of ordinary CFG.
        budget: risk that the estimated transition may leave.
        precision: "32" keeps the modules' own precision in probes, "bf16" runs them under autocast.
        on_error: "warn" records a failed probe as a gap and lets training go on, "raise" stops.
        export_to: directory for the calibrated, guarded checkpoint, written when training ends.
        alpha: risk the exported checkpoint promises not to exceed.
        delta: chance that this promise is broken.
        pairs: (caption, seed) pairs the promise rests on.
        before: scales to try above the transition; 0 is none, negative is opposite guidance.
        transitions: timesteps to try as the transition; every one of the sampler's grid when not given.
        after: scales to try at and below the transition; `scale` when not given.
        strengths: of the fine-tune, in [0, 1], to test with ordinary CFG for people who sample without the rule.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.

    Example:
        >>> guard = MemorizationGuard(heldout=["a red kite"], captions=8, seeds=2)
        >>> guard.should_probe(epoch=0)
        True
    """

    def __init__(
        self,
        heldout: list[str] | None = None,
        every_n_epochs: int = 1,
        captions: int = 16,
        seeds: int = 2,
        timesteps: int = 20,
        scale: float = 7.5,
        budget: float = 0.1,
        precision: Literal["32", "bf16"] = "32",
        on_error: Literal["warn", "raise"] = "warn",
        export_to: str | None = None,
        alpha: float = 0.05,
        delta: float = 0.05,
        pairs: int = 128,
        before: list[float] | None = None,
        transitions: list[float] | None = None,
        after: list[float] | None = None,
        strengths: list[float] | None = None,
        alignment: str = "auto",
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"MemorizationGuard(every_n_epochs={every_n_epochs}): expected at least 1")
        self.heldout, self.every_n_epochs, self.on_error = tuple(heldout or ()), every_n_epochs, on_error
        self.plan = Plan(captions, seeds, timesteps, scale, budget)
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.export_to = Path(export_to) if export_to else None
        self.terms = Terms(
            alpha,
            delta,
            pairs,
            tuple(before or (0.0, -1.0)),
            tuple(transitions or ()),
            tuple(after or ()),
            strengths=tuple(strengths or ()),
        )
        self.alignment = alignment
        self.guard: Guard | None = None
        self.record: Record | None = None
        self.frontier: list[Candidate] = []
        self._state: dict[str, Any] = {}
        self._protectable: dict[str, torch.Tensor] = {}

    @property
    def history(self) -> list[Report]:
        """Every report so far; epoch -1 is the untouched base model."""
        return self.guard.history if self.guard else []

    def should_probe(self, epoch: int) -> bool:
        """Whether to measure after this epoch, counted from 0."""
        return (epoch + 1) % self.every_n_epochs == 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reads the training images; anything wrong with them is said here, before training starts."""
        if stage != "fit" or self.guard is not None:
            return
        data = trainer.datamodule
        training = TrainingSet(data.all_pixels(), tuple(caption for _, caption in data.items), self.heldout)
        self.guard = Guard(training, Structure(), self.plan, alignment_for(pl_module.base_id, self.alignment))
        if self._state:
            self.guard.load_state_dict(self._state)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the base model once; a resumed run already has it."""
        if not self.history and not trainer.fast_dev_run:
            self._probe(trainer, pl_module, epoch=-1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the model as this epoch left it and logs what moved."""
        if self.should_probe(trainer.current_epoch) and not trainer.fast_dev_run:
            self._probe(trainer, pl_module, epoch=trainer.current_epoch)
        if self.history:
            pl_module.log_dict(scalars(self.history))
            pl_module.log("risk", self.history[-1].risk.value, prog_bar=True, logger=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Calibrates and exports the last checkpoint that delayed guidance can still protect."""
        if self.export_to is None or self.guard is None or not self.history or not trainer.is_global_zero:
            return
        with _untouched(pl_module), _weights(pl_module, self._protectable):
            self.record, self.frontier = ship(self.guard, pl_module, self.terms, self.export_to, dtype=self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """The history, so that a resumed run goes on where it stopped."""
        return self.guard.state_dict() if self.guard else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the interrupted run."""
        self._state = state_dict
        if self.guard is not None:
            self.guard.load_state_dict(state_dict)

    def _probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Measures, shows, and remembers the weights while a transition still protects them."""
        if self.guard is None or not trainer.is_global_zero:
            return
        try:
            with _untouched(pl_module), pl_module.averaged_weights():
                model = LatentModel(pl_module.pipe, dtype=self.dtype)
                report = self.guard.measure(model, epoch=epoch, train_step=trainer.global_step)
                self._show(trainer, model, report)
        except Exception as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"the probe of epoch {epoch} failed and is missing: {error}", stacklevel=2)
            return
        if report.transition is not None:
            self._protectable = _trainable(pl_module)

    def _show(self, trainer: pl.Trainer, model: LatentModel, report: Report) -> None:
        """Curves and a contact sheet for TensorBoard; the base row's scalars for every logger."""
        if report.epoch < 0:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(self.history), step=trainer.global_step)
        boards = [logger.experiment for logger in trainer.loggers if hasattr(logger.experiment, "add_figure")]
        if not boards or self.guard is None:
            return
        sheet = contact_sheet(*self.guard.show(model, report.transition))
        for board in boards:
            board.add_figure("guard/curve", curve_figure(self.history), trainer.global_step)
            board.add_figure("guard/history", history_figure(self.history), trainer.global_step)
            board.add_image("guard/contact_sheet", pil_to_tensor(sheet), trainer.global_step)


def scalars(history: list[Report]) -> dict[str, float]:
    """What is logged of the last report: every estimate and its ends, and how far it moved since the base."""
    last, base = history[-1], history[0]
    values: dict[str, float] = {}
    for name in MEASURED:
        estimate: Estimate | None = getattr(last, name)
        if estimate is None:
            continue
        values |= {
            f"guard/{name}": estimate.value,
            f"guard/{name}_low": estimate.low,
            f"guard/{name}_high": estimate.high,
        }
        before = getattr(base, name)
        if before is not None:
            values[f"guard/{name}_since_base"] = estimate.value - before.value
    if last.transition is not None:
        values["guard/transition"] = last.transition
    return values


@contextmanager
def _untouched(pl_module: pl.LightningModule) -> Iterator[None]:
    """Leaves random number streams and every module's mode as they were."""
    modes = {module: module.training for module in pl_module.modules()}
    pl_module.eval()
    try:
        with isolate_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _trainable(pl_module: pl.LightningModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in pl_module.named_parameters() if p.requires_grad}


@contextmanager
def _weights(pl_module: pl.LightningModule, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Puts remembered weights in for a while; the trained ones come back whatever happens."""
    trained = _trainable(pl_module)
    _load(pl_module, weights)
    try:
        yield
    finally:
        _load(pl_module, trained)


@torch.no_grad()
def _load(pl_module: pl.LightningModule, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in pl_module.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])
