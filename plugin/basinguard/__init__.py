"""A guard against memorization for people who fine-tune Stable Diffusion on small image sets.

    basinguard.protect(pipe, rule)        a rule inside an unmodified diffusers pipeline
    basinguard.load(directory)            an exported checkpoint, sampled by its own rule
    basinguard.MemorizationGuard(...)     the Lightning callback; LoopGuard for loops of one's own
    basinguard.FineTune, ImageFolder      a LightningModule and LightningDataModule to go with it
    basinguard.curate, calibrate, ...     the verbs of the command line as functions
    basinguard.gaussian_memorizer, ...    the physics in closed form, as the notebook tells it

Names are looked up when they are used, so importing the package loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` says to type checkers that the name is public
    from .attacks.monitor import Monitor as Monitor
    from .attacks.options import AttackOptions as AttackOptions
    from .basin.curves import mean_width as mean_width
    from .basin.curves import median_exit as median_exit
    from .basin.curves import risk_curve as risk_curve
    from .basin.curves import static_transition as static_transition
    from .basin.exit_search import ExitSearch as ExitSearch
    from .basin.trajectories import GuidedModel as GuidedModel
    from .basin.trajectories import Pairs as Pairs
    from .calibration.terms import CalibrationTerms as CalibrationTerms
    from .commands.audit import audit as audit
    from .commands.calibrate import calibrate as calibrate
    from .commands.compare import compare as compare
    from .commands.curate import curate as curate
    from .commands.export import StoredOptions as StoredOptions
    from .commands.export import WorkflowOptions as WorkflowOptions
    from .commands.export import export as export
    from .commands.verify import verify as verify
    from .core.estimate import Estimate as Estimate
    from .core.record import Record as Record
    from .core.report import Report as Report
    from .curation.trainer_settings import TrainerSettings as TrainerSettings
    from .diffusion.sampling import draw_noise as draw_noise
    from .diffusion.sampling import sample_trajectory as sample_trajectory
    from .diffusion.toy import gaussian_memorizer as gaussian_memorizer
    from .guard.guard import Guard as Guard
    from .guard.plan import ProbePlan as ProbePlan
    from .guard.training_set import TrainingSet as TrainingSet
    from .guidance.core import Constant as Constant
    from .guidance.core import SwitchAt as SwitchAt
    from .guidance.dynamic import Drop as Drop
    from .guidance.dynamic import LocalMinimum as LocalMinimum
    from .guidance.dynamic import SwitchAfter as SwitchAfter
    from .guidance.strength import StrengthSchedule as StrengthSchedule
    from .mitigations.settings import ComparisonOptions as ComparisonOptions
    from .pipelines.latent_model import LatentModel as LatentModel
    from .pipelines.low_rank import extract_lora as extract_lora
    from .pipelines.protect import load as load
    from .pipelines.protect import protect as protect
    from .pipelines.protect import unprotect as unprotect
    from .pipelines.session_settings import SessionSettings as SessionSettings
    from .sessions.verification_options import VerificationOptions as VerificationOptions
    from .similarity.copy_detector import CopyDetector as CopyDetector
    from .similarity.copy_detector_settings import CopyDetectorSettings as CopyDetectorSettings
    from .tinyworld.tasks import TASKS as TASKS
    from .training.accelerate import LoopGuard as LoopGuard
    from .training.caption_augmentation import CaptionAugmentation as CaptionAugmentation
    from .training.data import ImageFolder as ImageFolder
    from .training.finetune import FineTune as FineTune
    from .training.finetune_options import FramingOptions as FramingOptions
    from .training.finetune_options import HubDataset as HubDataset
    from .training.finetune_options import LoraOptions as LoraOptions
    from .training.finetune_options import LossOptions as LossOptions
    from .training.finetune_options import MemoryOptions as MemoryOptions
    from .training.finetune_options import OptimizerOptions as OptimizerOptions
    from .training.finetune_options import ReadingOptions as ReadingOptions
    from .training.guard_options import BreachResponse as BreachResponse
    from .training.guard_options import ControlGroup as ControlGroup
    from .training.guard_options import Interventions as Interventions
    from .training.lightning import MemorizationGuard as MemorizationGuard

__version__ = "0.1.0"

_MODULES = {
    "pipelines.protect": ("protect", "unprotect", "load"),
    "guidance.core": ("Constant", "SwitchAt"),
    "guidance.dynamic": ("SwitchAfter", "LocalMinimum", "Drop"),
    "guidance.strength": ("StrengthSchedule",),
    "training.lightning": ("MemorizationGuard",),
    "training.accelerate": ("LoopGuard",),
    "training.finetune": ("FineTune",),
    "training.finetune_options": (
        "LoraOptions",
        "OptimizerOptions",
        "LossOptions",
        "MemoryOptions",
        "HubDataset",
        "FramingOptions",
        "ReadingOptions",
    ),
    "training.caption_augmentation": ("CaptionAugmentation",),
    "training.data": ("ImageFolder",),
    "training.guard_options": ("BreachResponse", "ControlGroup", "Interventions"),
    "guard.guard": ("Guard",),
    "attacks.monitor": ("Monitor",),
    "attacks.options": ("AttackOptions",),
    "guard.plan": ("ProbePlan",),
    "guard.training_set": ("TrainingSet",),
    "calibration.terms": ("CalibrationTerms",),
    "pipelines.session_settings": ("SessionSettings",),
    "similarity.copy_detector": ("CopyDetector",),
    "similarity.copy_detector_settings": ("CopyDetectorSettings",),
    "pipelines.latent_model": ("LatentModel",),
    "pipelines.low_rank": ("extract_lora",),
    "core.report": ("Report",),
    "core.record": ("Record",),
    "core.estimate": ("Estimate",),
    "diffusion.sampling": ("draw_noise", "sample_trajectory"),
    "diffusion.toy": ("gaussian_memorizer",),
    "basin.trajectories": ("GuidedModel", "Pairs"),
    "basin.exit_search": ("ExitSearch",),
    "basin.curves": ("risk_curve", "mean_width", "median_exit", "static_transition"),
    "curation.trainer_settings": ("TrainerSettings",),
    "tinyworld.tasks": ("TASKS",),
    "mitigations.settings": ("ComparisonOptions",),
    "sessions.verification_options": ("VerificationOptions",),
    "commands.export": ("export", "StoredOptions", "WorkflowOptions"),
    **{f"commands.{verb}": (verb,) for verb in ("curate", "calibrate", "audit", "verify", "compare")},
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
