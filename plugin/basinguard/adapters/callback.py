"""The hooks of `MemorizationGuard`, for either of Lightning's two import roots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..calibrate import Candidate
from ..certify import Terms
from ..export.atomic import whole_file
from ..guard import Guard, Plan
from ..records import Record, Report, standing
from ..similarity.choose import choose_embedder
from .control import Threshold, require_control, training_set, with_threshold
from .diffusers import LatentModel
from .refusals import require_parts, require_whole_weights
from .shipping import alignment_for, ship
from .showing import remembered, scalars, show
from .watch import OnError, Watch, holding, same_streams, trained_weights, untouched

KEPT = "basinguard"  # key of a checkpoint
HISTORY = "guard.json"  # in the run's log directory


@dataclass(frozen=True)
class Kept:
    """Weights that a transition could still protect.

    Attributes:
        epoch, train_step: when they were measured.
        weights: trained parameters by name, as measured: averaged ones where training averages.
    """

    epoch: int
    train_step: int
    weights: dict[str, torch.Tensor]


class GuardHooks:
    """Measures, before training and after each epoch, how far the model has fallen into its training images.

    Scalars `guard/...` can be monitored by `EarlyStopping` and `ModelCheckpoint` in the same epoch. A logger that takes
    figures also gets the basin curve and a contact sheet; other loggers get the scalars; no logger works too.

    `guard.json` in the log directory holds every report so far, whatever ends the run.

    Training is the same to the bit with and without it, whatever a probe meets becomes a gap in the history, and a
    resumed run has the history of an uninterrupted one. With DDP all processes share the work of a probe; strategies
    that split weights are refused.

        torchrun --nproc_per_node 4 train.py                  # Trainer(devices=4, strategy="ddp")
        srun --ntasks-per-node 4 --gpus-per-node 4 python train.py    # Trainer(devices=4, num_nodes=$SLURM_NNODES, ...)

    The LightningModule holds `pipe`, a `StableDiffusionPipeline` around the modules in training; with `export_to` also
    `base_id` and `export_pipeline()`; where it averages weights, a context `averaged_weights()` puts them in. The
    datamodule has `items`, (name, caption) of each image, and `all_pixels()`, [N, 3, H, W] in 0..1.

    Args:
        heldout: prompts the model is not trained on, the control group.
        every_n_epochs: probe after every n-th epoch.
        captions: how many training captions to sample at each probe.
        seeds: samples for each of them.
        timesteps: sampling steps.
        scale: guidance scale of ordinary CFG.
        risk: risk that the estimated transition may leave.
        budget: what every probe may cost: "5%" of the time trained since the one before, or a number of UNet
            evaluations; no limit if None. It buys the gap of every caption first, then samples of captions in turns,
            then their exits; a report's `precision` says what, and what was out of reach.
        precision: "32" keeps the modules' own precision in probes, "bf16" runs them under autocast.
        on_error: "warn" records a failed probe as a gap and lets training go on, "raise" stops.
        export_to: directory for the calibrated, guarded checkpoint, written when training ends.
        alpha: risk the exported checkpoint promises not to exceed.
        delta: chance that this promise is broken.
        pairs: (caption, seed) pairs the promise rests on.
        before: scales to try above the transition; 0 is none, negative is opposite guidance.
        after: scales to try at and below it; `scale` alone when not given.
        strengths: of the fine-tune, in [0, 1], to test with ordinary CFG for people who sample without the rule.
        transitions: timesteps to try as the transition; every one of the sampler's grid when not given.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        chunk: most (caption, seed) pairs sampled at once; fewer take less memory and change no result.
        solver: sampler of the probes, one of `solvers.SOLVERS`; calibration and export use the same.
        retention: how many training (and held-out) images get their critical scale measured at each probe.
        checks: candidates tried beyond each search for an exit, to see whether outcomes are ordered.
        heldout_folder: captioned images that are not trained on, instead of `heldout`: their captions are the held-out
            prompts, and they are the control group of critical scales.
        embedder: the eye that says "same image", as `similarity.choose` takes it: "structure" (no weights),
            "sscd_disc_mixup_320=FILE", "timm/MODEL=FILE", "clip=FOLDER".
        threshold: above which similarity is a copy: the embedder's "published" one, or measured where nothing is
            copied: on "neighbours" (training images among each other) or "heldout" (images of `heldout_folder`).

    Raises:
        ValueError: a setting out of range, or settings that contradict each other.
        FileNotFoundError: an embedder's weights or the held-out folder are missing.

    Example:
        >>> from basinguard import MemorizationGuard
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
        risk: float = 0.1,
        budget: str | int | None = None,
        precision: Literal["32", "bf16"] = "32",
        on_error: OnError = "warn",
        export_to: str | None = None,
        alpha: float = 0.05,
        delta: float = 0.05,
        pairs: int = 128,
        before: list[float] | None = None,
        after: list[float] | None = None,
        strengths: list[float] | None = None,
        transitions: list[float] | None = None,
        alignment: str = "auto",
        chunk: int = 64,
        solver: str = "ddim",
        retention: int = 0,
        checks: int = 0,
        heldout_folder: str | None = None,
        embedder: str = "structure",
        threshold: Threshold = "published",
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"MemorizationGuard(every_n_epochs={every_n_epochs}): expected at least 1")
        self.heldout, self.every_n_epochs, self.on_error = tuple(heldout or ()), every_n_epochs, on_error
        self.plan = Plan(captions, seeds, timesteps, scale, risk, chunk, budget, solver, retention, checks)
        self.embedder, self.threshold, self.heldout_folder = choose_embedder(embedder), threshold, heldout_folder
        require_control(self.embedder, threshold, self.heldout, heldout_folder)
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.export_to = Path(export_to) if export_to else None
        self.terms = Terms(
            alpha,
            delta,
            pairs,
            before=tuple(before or (0.0, -1.0)),
            after=tuple(after or ()),
            transitions=tuple(transitions or ()),
            strengths=tuple(strengths or ()),
        )
        self.alignment = alignment
        self.watch: Watch | None = None
        self.record: Record | None = None
        self.frontier: list[Candidate] = []
        self._state: dict[str, Any] = {}
        self._kept: Kept | None = None
        self._logged = 0  # reports that were logged in this fit

    @property
    def guard(self) -> Guard | None:
        """What measures; None until a fit begins."""
        return self.watch.guard if self.watch else None

    @property
    def history(self) -> list[Report]:
        """Every report so far; epoch -1 is the untouched base model, a report with a `problem` is a gap."""
        return self.watch.history if self.watch else []

    def should_probe(self, epoch: int) -> bool:
        """Whether to measure after this epoch, counted from 0."""
        return (epoch + 1) % self.every_n_epochs == 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Reads the training images; anything wrong with them is said here, before training starts."""
        if stage != "fit" or self.watch is not None:
            return
        require_whole_weights(trainer.strategy)
        require_parts(trainer.datamodule, pl_module)
        data = trainer.datamodule
        with same_streams():
            training = training_set(data, self.heldout, self.heldout_folder)
            eye = with_threshold(self.embedder, self.threshold, training)
            align = alignment_for(str(getattr(pl_module, "base_id", "")), self.alignment)
            guard = Guard(training, eye, self.plan, align)
        self.watch = Watch(guard, dtype=self.dtype, on_error=self.on_error)
        if self._state:
            self.watch.load_state_dict(self._state)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measures the base model; a resumed run measures what the interrupted one was about to."""
        if self.watch is None or trainer.fast_dev_run:
            return
        self._logged = 0
        if trainer.global_step == 0 and not self.history:
            self._probe(trainer, pl_module, epoch=-1)
        elif not self.history:
            told = f"resumed at train step {trainer.global_step} without a history: the base model was not measured"
            self.history.append(Report.missed(-1, trainer.global_step, told))
            self.watch.complain("the history has no base model", ValueError(told))
        elif self._is_owed(trainer, trainer.current_epoch - 1):
            self._probe(trainer, pl_module, epoch=trainer.current_epoch - 1)

    def _is_owed(self, trainer: Any, epoch: int) -> bool:
        """Whether a checkpoint was made after an epoch's last batch and before its end, which Lightning then skips."""
        known = {report.epoch for report in self.history}
        at_the_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return at_the_end and epoch >= 0 and epoch not in known and self.should_probe(epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures the model as this epoch left it and logs what moved."""
        if self.watch is None or trainer.fast_dev_run:
            return
        if self.should_probe(trainer.current_epoch):
            self._probe(trainer, pl_module, epoch=trainer.current_epoch)
        if standing(self.history) is None:
            _excuse_monitors(trainer)
        if self.watch.measured and len(self.history) != self._logged:
            self._log(pl_module)

    def _log(self, pl_module: Any) -> None:
        """Gives monitors the newest value of everything, which lasts as long as the fit; loggers get only what is new.

        Every process logs the same numbers; taking the largest keeps them exact.
        """
        self._logged, known = len(self.history), remembered(self.history)
        pl_module.log_dict(known, logger=False, sync_dist=True, reduce_fx="max")
        for name in ("risk", "gap_since_base"):
            if f"guard/{name}" in known:
                value = known[f"guard/{name}"]
                pl_module.log(name, value, prog_bar=True, logger=False, sync_dist=True, reduce_fx="max")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Calibrates and exports the last weights that delayed guidance can still protect.

        Everything of the user's is saved by now; a run that was killed here and resumed comes here again.
        """
        if self.export_to is None or self.watch is None or not self.watch.measured or not trainer.is_global_zero:
            return
        try:
            pl_module.to(trainer.strategy.root_device)
            with untouched(pl_module), _as_kept(pl_module, self._kept):
                self.record, self.frontier = ship(
                    self.watch.guard, pl_module, self.terms, self.export_to, dtype=self.dtype
                )
        except Exception as error:
            self.watch.complain(f"nothing was exported to {self.export_to}; resume the last checkpoint to retry", error)

    def state_dict(self) -> dict[str, Any]:
        """The history, so that a resumed run goes on where it stopped."""
        return self.watch.state_dict() if self.watch else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the interrupted run."""
        self._state = state_dict
        if self.watch is not None:
            self.watch.load_state_dict(state_dict)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the weights to export, unless the checkpoint's own are those."""
        if self._kept is None:
            return
        kept, averaged = self._kept, getattr(pl_module, "ema", None) is not None
        same = kept.train_step == trainer.global_step and not averaged
        checkpoint[KEPT] = {
            "epoch": kept.epoch,
            "train_step": kept.train_step,
            "weights": {} if same else kept.weights,
        }

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes them back; the module's weights have been restored already."""
        stored = checkpoint.get(KEPT)
        if stored:
            weights = stored["weights"] or trained_weights(pl_module)
            self._kept = Kept(stored["epoch"], stored["train_step"], weights)

    def _probe(self, trainer: Any, pl_module: Any, epoch: int) -> None:
        """Measures, logs and shows what is new, and remembers the weights while a transition still protects them."""
        watch = self.watch
        if watch is None:
            return
        with getattr(pl_module, "averaged_weights", nullcontext)():
            report = watch.probe(pl_module.pipe, epoch=epoch, train_step=trainer.global_step)
            folder = Path(trainer.log_dir or trainer.default_root_dir)  # processes tell each other: all must ask
            if report is None or not trainer.is_global_zero:
                return
            self._write(folder, watch)
            if report.problem:
                return
            stands = standing(self.history)
            if stands is not None and stands.transition is not None:
                self._kept = Kept(epoch, trainer.global_step, trained_weights(pl_module))
            try:
                with untouched(pl_module):
                    values = scalars(self.history) | ({"epoch": epoch} if epoch >= 0 else {})
                    for logger in trainer.loggers:
                        logger.log_metrics(values, step=trainer.global_step)
                    model = LatentModel(pl_module.pipe, dtype=self.dtype)
                    show(trainer.loggers, watch.guard, model, trainer.global_step)
            except Exception as error:
                watch.complain(f"pictures and scalars of epoch {epoch} could not be logged", error)

    def _write(self, folder: Path, watch: Watch) -> None:
        """The reports so far, for people and programs: whatever ends the run, they stay."""
        target = folder / HISTORY
        reports = [json.loads(report.to_json()) for report in self.history]
        try:
            with whole_file(target, overwrite=True) as partial:
                partial.write_text(json.dumps(reports, indent=1), "utf-8")
        except OSError as error:
            watch.complain(f"{target} could not be written", error)


def _excuse_monitors(trainer: Any) -> None:
    """Nothing was measured in full yet: `EarlyStopping` on a guard's number waits for it instead of ending the run."""
    for stop in trainer.early_stopping_callbacks:
        if str(stop.monitor).startswith("guard/"):
            stop.strict = False


@contextmanager
def _as_kept(pl_module: Any, kept: Kept | None) -> Iterator[None]:
    """Inside, the module holds the kept weights, in place of any average."""
    average = getattr(pl_module, "ema", None)
    if kept is None:
        yield
        return
    with holding(pl_module, kept.weights):
        if average is not None:
            pl_module.ema = None
        try:
            yield
        finally:
            if average is not None:
                pl_module.ema = average
