"""The guard for a training loop of your own: diffusers' example scripts with accelerate, or any other loop.

    guard = LoopGuard(Guard(TrainingSet(images, captions, heldout), Structure(), ProbePlan(captions=8)), accelerator)
    accelerator.load_state(...)                                # resuming brings the history back
    guard.measure(pipe, epoch=-1, train_step=0)                # the base model; a resumed run has it already
    for epoch in range(first_epoch, epochs):
        ...
        guard.measure(pipe, epoch=epoch, train_step=global_step)

Everything `MemorizationGuard` can be told is an argument of these: sampler, critical scales and checks of `ProbePlan`;
held-out images of `TrainingSet`; another eye of `similarity.choose`, with a threshold measured by `similarity.null`:

    training = TrainingSet(images, captions, heldout, heldout_images)
    eye = calibrated(load_embedder("sscd_disc_mixup_320=FILE"), images, fresh=heldout_images)
    plan = ProbePlan(captions=8, solver="heun", critical_scales=8, order_checks=1)
    guard = LoopGuard(Guard(training, embedder, plan), accelerator)

Launched as such scripts are:

    accelerate launch --num_processes 4 train.py               # or: torchrun --nproc_per_node 4 train.py
    srun --ntasks-per-node 1 accelerate launch --num_machines $SLURM_NNODES --machine_rank $SLURM_NODEID \\
        --main_process_ip HOST --num_processes 8 train.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..calibration.terms import CalibrationTerms
from ..core.record import Record
from ..core.report import Report
from ..exports.merge import merged
from ..guard.checkpoint_selection import SamplingMode
from ..guard.guard import Guard
from ..guard.status import RunStatus
from .best_weights import Keeper, export_plain, plain_directory
from .guarded_run import Watch, holding, trained_weights, untouched
from .options import OnError, ShippedEpoch
from .shipping import ship

if TYPE_CHECKING:
    from accelerate import Accelerator

SPLIT = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP")  # ways of training that keep a part of the weights in each process


class LoopGuard:
    """Measures a pipeline whenever it is told to, and never harms the loop it is called from.

    Every process of a distributed run makes the same calls; they share the work of each. Training is the same to the
    bit with and without them, and what fails becomes a gap in the history.

    Args:
        guard: what to measure, on what.
        accelerator: saves and restores the history in its checkpoints; without one, use `state_dict`.
        dtype: precision of the probes; None keeps the modules' own. Give the mixed precision of the training here.
        on_error: "warn" reports a problem once and goes on, "raise" stops.
        ship: of the epochs that keep the risk, export the "best" or the "last", see `choice.choose`.

    Raises:
        ValueError: the accelerator splits the weights among processes.
    """

    def __init__(
        self,
        guard: Guard,
        accelerator: Accelerator | None = None,
        *,
        dtype: torch.dtype | None = None,
        on_error: OnError = "warn",
        ship: ShippedEpoch = "best",
    ) -> None:
        if accelerator is not None:
            _require_whole_weights(accelerator)
        self.keeper = Keeper(guard.plan.alpha, ship)
        self.watch = Watch(guard, dtype=dtype, on_error=on_error)
        if accelerator is not None:
            accelerator.register_for_checkpointing(self)

    @property
    def history(self) -> list[Report]:
        """Every report so far; epoch -1 is the untouched base model, a report with a `problem` is a gap."""
        return self.watch.history

    @property
    def standing(self) -> RunStatus:
        """Verdict, forecast and the epochs to ship, as of the newest report; `standing.verdict.breaches()` to stop."""
        return self.watch.standing(self.keeper.choices(self.history))

    def measure(self, pipe: Any, epoch: int, train_step: int = 0) -> Report | None:
        """Measures the modules of a pipeline as they stand now.

        Args:
            pipe: a `StableDiffusionPipeline` around the modules in training, unwrapped
                (`accelerator.unwrap_model(unet)`).
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.

        Returns:
            The report, which is also in `history`; that of an earlier call for the same epoch and train step, if there
            was one, so a resumed loop may call again. None where the plan's budget pays for nothing.
        """
        known = [r for r in self.history if (r.epoch, r.train_step) == (epoch, train_step)]
        if known:
            return known[0]
        report = self.watch.probe(pipe, epoch=epoch, train_step=train_step)
        if report is not None and not report.problem:
            self.keeper.look(self.history, lambda: trained_weights(_parts(pipe)))
        return report

    def export(self, pipe: Any, out: Path, terms: CalibrationTerms, *, base: str) -> Record | None:
        """Calibrates and exports the epoch to ship guarded, and beside it, as `OUT-plain`, the one for plain CFG.

        Args:
            pipe: as in `measure`; its weights are as before afterwards.
            out: directory for the guarded checkpoint.
            terms: what is to be promised.
            base: id or directory of the model that was fine-tuned.

        Returns:
            The record, in the main process of a run whose export succeeded.
        """
        if self.watch.team.rank:
            return None
        parts, record = SimpleNamespace(export_pipeline=lambda: merged(pipe), base_id=base, pipe=pipe, hparams={}), None
        modules = (pipe.unet, pipe.vae, pipe.text_encoder)
        try:
            with untouched(*modules), self.kept_weights(pipe):
                record = ship(self.watch.guard, parts, terms, out, dtype=self.watch.dtype)[0]
        except Exception as error:
            self.watch.complain(f"nothing was exported to {out}; call export again", error)
        choice = self.keeper.choices(self.history)["plain"]
        try:
            if choice is not None:
                with untouched(*modules), self.kept_weights(pipe, "plain"):
                    export_plain(parts, choice, plain_directory(out))
        except Exception as error:
            self.watch.complain(f"nothing was exported to {plain_directory(out)}; call export again", error)
        return record

    @contextmanager
    def kept_weights(self, pipe: Any, how: SamplingMode = "guarded") -> Iterator[None]:
        """Inside, the pipeline holds the weights of the epoch to ship for guarded sampling, or for plain CFG."""
        kept = self.keeper.kept.get(how)
        with holding(_parts(pipe), kept.weights if kept else {}):
            yield

    def state_dict(self) -> dict[str, Any]:
        """History and kept weights: texts, numbers and tensors only."""
        return {**self.watch.state_dict(), "kept": self.keeper.state_dict(-1, averaged=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up an interrupted run.

        Raises:
            ValueError: the state is damaged, or was measured on other images or with other settings.
        """
        self.watch.load_state_dict(state)
        if not self.watch.other_data:
            self.keeper.load_state_dict(state.get("kept") or {}, dict)


def _parts(pipe: Any) -> nn.Module:
    return nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})


def _require_whole_weights(accelerator: Accelerator) -> None:
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in SPLIT:
        raise ValueError(
            f"LoopGuard cannot probe under {kind}, which keeps only a part of the weights in each process; train with "
            "plain data parallelism (a LoRA of Stable Diffusion fits one device), or measure saved checkpoints with a "
            "LoopGuard that has no accelerator"
        )
