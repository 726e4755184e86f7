"""The hooks of `MemorizationGuard`, for either of Lightning's two import roots."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..calibration.candidate import RuleCandidate
from ..calibration.terms import CalibrationTerms
from ..core.record import Record
from ..core.report import Report, last_search
from ..guard.guard import Guard
from ..guard.plan import ProbePlan
from ..guard.status import RunStatus
from ..pipelines.latent_model import LatentModel
from ..similarity.copy_detector_settings import CopyDetectorSettings
from .best_weights import Keeper, as_kept, export_plain, plain_directory
from .control_group import require_control, training_set
from .guarded_run import DTYPES, Watch, same_streams, trained_weights, untouched
from .interventions import Actor, advice, respond
from .logging import remembered, scalars, show, tell_progress_bar, write_file
from .options import BreachResponse, ControlGroup, OnError, Precision, ShippedEpoch
from .requirements import require_parts, require_whole_weights
from .shipping import clip_for, ship, subject_of

KEPT = "basinguard"  # key of a checkpoint
HISTORY = "guard.json"  # in the run's log directory


class GuardHooks:
    """Measures, before training and after each epoch, how far the model has fallen into its training images.

    Scalars `guard/...` can be monitored by `EarlyStopping` and `ModelCheckpoint` in the same epoch. A logger that takes
    figures also gets the basin curve and a contact sheet; other loggers get the scalars; no logger works too.

    After each probe a verdict says where the run stands, a forecast when plain CFG will exceed the allowed risk, and
    the epochs to ship are chosen: on the progress bar, in TensorBoard (`guard/dashboard`, `guard/standing`), and with
    every report so far in `guard.json` in the log directory, whatever ends the run. Lightning's own callbacks can act
    on the same numbers: `EarlyStopping("guard/verdict", divergence_threshold=1.5, patience=1000)` ends a run that
    memorizes, `ModelCheckpoint(monitor="guard/ship_plain", mode="max")` keeps the checkpoint of the epoch to ship.

    Training is the same to the bit with and without it, whatever a probe meets becomes a gap in the history, and a
    resumed run has the history of an uninterrupted one. With DDP all processes share the work of a probe; strategies
    that split weights are refused.

        torchrun --nproc_per_node 4 train.py                  # Trainer(devices=4, strategy="ddp")
        srun --ntasks-per-node 4 --gpus-per-node 4 python train.py    # Trainer(devices=4, num_nodes=$SLURM_NNODES, ...)

    The LightningModule holds `pipe`, a `StableDiffusionPipeline` around the modules in training; with `export_to` also
    `base_id` and `export_pipeline()`; where it averages weights, a context `averaged_weights()` puts them in. The
    datamodule has `items`, (name, caption) of each image, and `all_pixels()`, [N, 3, H, W] in 0..1.

    Args:
        plan: what a probe measures, and what it may cost.
        control: what the model is not trained on.
        detector: what decides that a sample is a copy.
        terms: what the exported checkpoint promises.
        respond: what happens when the risk is surely above `plan.alpha`.
        export_to: directory for the calibrated, guarded checkpoint, written when training ends.
        ship: of the epochs that keep the risk, export the "best" or the "last", see `checkpoint_selection.choose`.
        every_n_epochs: probe after every n-th epoch.
        alignment: open_clip model that scores captions: "auto", "none", a directory or a name.
        precision: "32" keeps the modules' own precision in probes, "bf16" and "fp16" run them under autocast.
        on_error: "warn" records a failed probe as missed and lets training go on, "raise" stops.

    Raises:
        ValueError: settings that contradict each other.
        FileNotFoundError: an embedder's weights or the held-out folder are missing.

    Example:
        >>> from basinguard import ControlGroup, MemorizationGuard, ProbePlan
        >>> guard = MemorizationGuard(ProbePlan(captions=8), ControlGroup(["a red kite"]), every_n_epochs=5)
        >>> guard.should_probe(epoch=4)
        True
    """

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
        precision: Precision = "32",
        on_error: OnError = "warn",
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"MemorizationGuard(every_n_epochs={every_n_epochs}): expected at least 1")
        self.plan, self.control, self.detector, self.terms, self.respond = plan, control, detector, terms, respond
        self.embedder = detector.load()
        require_control(control, detector)
        self.every_n_epochs, self.on_error, self.alignment = every_n_epochs, on_error, alignment
        self.dtype = DTYPES[precision]
        self.export_to = Path(export_to) if export_to else None
        self.keeper = Keeper(plan.alpha, ship)
        self.actor: Actor | None = None
        self.standing: RunStatus | None = None
        self.watch: Watch | None = None
        self.record: Record | None = None
        self.frontier: list[RuleCandidate] = []
        self._state: dict[str, Any] = {}
        self._warned = False
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
        if self.respond.interventions is not None:
            self.actor = Actor(self.respond.interventions, pl_module, data)
        with same_streams():
            training = training_set(data, self.control)
            eye = self.detector.fitted(self.embedder, training.images, training.heldout_images)
            clip = clip_for(str(getattr(pl_module, "base_id", "")), self.alignment)
            subject = subject_of(clip, training.images) if self.plan.fidelity else None
            guard = Guard(training, eye, self.plan, clip.score if clip else None, subject)
        self.watch = Watch(guard, dtype=self.dtype, on_error=self.on_error)
        if self._state:
            self.load_state_dict(self._state)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measures the base model; a resumed run measures what the interrupted one was about to."""
        if self.watch is None or trainer.fast_dev_run:
            return
        self._logged = 0
        tell_progress_bar(trainer, lambda: self.standing.verdict.state if self.standing else "")
        if self.watch.other_data:
            self.keeper.kept.clear()
        self._stand()
        if trainer.global_step == 0 and not self.history:
            self._probe(trainer, pl_module, epoch=-1)
        elif not self.history:
            told = f"resumed at train step {trainer.global_step} without a history: the base model was not measured"
            self.history.append(Report.missed(-1, trainer.global_step, told))
            self.watch.complain("the history has no base model", ValueError(told))
        elif self._is_owed(trainer, trainer.current_epoch - 1) and self._probe(
            trainer, pl_module, epoch=trainer.current_epoch - 1
        ):
            self._respond(trainer, pl_module)

    def _is_owed(self, trainer: Any, epoch: int) -> bool:
        """Whether a checkpoint was made after an epoch's last batch and before its end, which Lightning then skips."""
        known = {report.epoch for report in self.history}
        at_the_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return at_the_end and epoch >= 0 and epoch not in known and self.should_probe(epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measures the model as this epoch left it and logs what moved."""
        if self.watch is None or trainer.fast_dev_run:
            return
        if self.should_probe(trainer.current_epoch) and self._probe(trainer, pl_module, epoch=trainer.current_epoch):
            self._respond(trainer, pl_module)
        if last_search(self.history) is None:
            _excuse_monitors(trainer)
        if self.watch.measured and len(self.history) != self._logged:
            self._log(pl_module)

    def _log(self, pl_module: Any) -> None:
        """Gives monitors the newest value of everything, which lasts as long as the fit; loggers get only what is new.

        Every process logs the same numbers; taking the largest keeps them exact.
        """
        self._logged, known = len(self.history), remembered(self.history, self.standing)
        pl_module.log_dict(known, logger=False, sync_dist=True, reduce_fx="max")
        for name in ("risk", "gap_since_base"):
            if f"guard/{name}" in known:
                value = known[f"guard/{name}"]
                pl_module.log(name, value, prog_bar=True, logger=False, sync_dist=True, reduce_fx="max")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Calibrates and exports the epoch to ship guarded, and beside it the one that plain CFG may sample.

        Everything of the user's is saved by now; a run that was killed here and resumed comes here again.
        """
        if self.export_to is None or self.watch is None or not self.watch.measured or not trainer.is_global_zero:
            return
        try:
            pl_module.to(trainer.strategy.root_device)
            with untouched(pl_module), as_kept(pl_module, self.keeper.kept.get("guarded")):
                self.record, self.frontier = ship(
                    self.watch.guard, pl_module, self.terms, self.export_to, dtype=self.dtype
                )
        except Exception as error:
            self.watch.complain(f"nothing was exported to {self.export_to}; resume the last checkpoint to retry", error)
        self._export_plain(pl_module, self.watch, plain_directory(self.export_to))

    def _export_plain(self, pl_module: Any, watch: Watch, out: Path) -> None:
        choice, kept = self.keeper.choices(self.history)["plain"], self.keeper.kept.get("plain")
        if choice is None or kept is None or kept.epoch != choice.epoch:
            warnings.warn(f"nothing was exported to {out}: no epoch keeps plain CFG's risk", stacklevel=2)
            return
        try:
            with untouched(pl_module), as_kept(pl_module, kept):
                export_plain(pl_module, choice, out)
        except Exception as error:
            watch.complain(f"nothing was exported to {out}; resume the last checkpoint to retry", error)

    def state_dict(self) -> dict[str, Any]:
        """The history and what was done, so that a resumed run goes on where it stopped."""
        if self.watch is None:
            return self._state
        acted = {"acting": self.actor.state_dict()} if self.actor else {}
        return {**self.watch.state_dict(), **acted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the history of the interrupted run."""
        self._state = state_dict
        if self.watch is None:
            return
        self.watch.load_state_dict(state_dict)
        if self.actor and "acting" in state_dict and not self.watch.other_data:
            self.actor.load_state_dict(state_dict["acting"])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the weights to export, unless the checkpoint's own are those."""
        averaged = getattr(pl_module, "ema", None) is not None
        if self.keeper.kept:
            checkpoint[KEPT] = self.keeper.state_dict(trainer.global_step, averaged=averaged)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Takes them back; the module's weights have been restored already."""
        self.keeper.load_state_dict(checkpoint.get(KEPT) or {}, lambda: trained_weights(pl_module))

    def _respond(self, trainer: Any, pl_module: Any) -> None:
        """What was asked for at a breach; every process does the same. Said once."""
        watch, standing = self.watch, self.standing
        if watch is None or standing is None or standing.verdict.level < 0:
            return
        breached = standing.verdict.breaches(self.respond.watches)
        did = respond(trainer, watch, self.actor, breached=breached, stop=self.respond.action == "stop")
        if breached and not self._warned and trainer.is_global_zero:
            hint = advice(getattr(pl_module, "hparams", {}))
            warnings.warn(f"epoch {self.history[-1].epoch} is {standing.verdict}; {did}; {hint}", stacklevel=2)
        self._warned = self._warned or breached

    def _stand(self) -> None:
        """Where the run stands now, in milliseconds."""
        if self.watch is None:
            return
        try:
            self.standing = self.watch.standing(self.keeper.choices(self.history))
        except Exception as error:
            self.standing = None
            self.watch.complain("there is no verdict on this epoch", error)

    def _probe(self, trainer: Any, pl_module: Any, epoch: int) -> bool:
        """Measures, judges, logs and shows what is new, and keeps the weights of the epochs to ship.

        Returns:
            Whether there is a new report; a budget may pay for nothing.
        """
        watch = self.watch
        if watch is None:
            return False
        with getattr(pl_module, "averaged_weights", nullcontext)():
            report = watch.probe(pl_module.pipe, epoch=epoch, train_step=trainer.global_step)
            folder = Path(trainer.log_dir or trainer.default_root_dir)  # processes tell each other: all must ask
            if report is None:
                return False
            self._stand()
            if not trainer.is_global_zero:
                return True
            self._write(folder, watch)
            if report.problem:
                return True
            self.keeper.look(self.history, lambda: trained_weights(pl_module))
            try:
                with untouched(pl_module):
                    values = scalars(self.history, self.standing) | ({"epoch": epoch} if epoch >= 0 else {})
                    for logger in trainer.loggers:
                        logger.log_metrics(values, step=trainer.global_step)
                    model = LatentModel(pl_module.pipe, dtype=self.dtype)
                    show(trainer.loggers, watch.guard, model, self.standing, trainer.global_step)
            except Exception as error:
                watch.complain(f"pictures and scalars of epoch {epoch} could not be logged", error)
        return True

    def _write(self, folder: Path, watch: Watch) -> None:
        """The reports so far, for people and programs: whatever ends the run, they stay."""
        target = folder / HISTORY
        try:
            if self.standing is not None:
                write_file(target, self.standing, self.history)
        except OSError as error:
            watch.complain(f"{target} could not be written", error)


def _excuse_monitors(trainer: Any) -> None:
    """Nothing was measured in full yet: `EarlyStopping` on a guard's number waits for it instead of ending the run."""
    for stop in trainer.early_stopping_callbacks:
        if str(stop.monitor).startswith("guard/"):
            stop.strict = False
