"""A guard against memorization for people who fine-tune Stable Diffusion on small image sets.

    basinguard.protect(pipe, rule)        a rule inside an unmodified diffusers pipeline
    basinguard.load(directory)            an exported checkpoint, sampled by its own rule
    basinguard.MemorizationGuard(...)     the Lightning callback; LoopGuard for loops of one's own
    basinguard.FineTune, ImageFolder      a LightningModule and LightningDataModule to go with it
    basinguard.curate, calibrate, ...     the verbs of the command line as functions

Names are looked up when they are used, so importing the package loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration.terms import CalibrationTerms
    from .commands.audit import audit
    from .commands.calibrate import calibrate
    from .commands.compare import compare
    from .commands.curate import curate
    from .commands.export import export
    from .commands.verify import verify
    from .core.estimate import Estimate
    from .core.record import Record
    from .core.report import Report
    from .guard.guard import Guard
    from .guard.plan import ProbePlan
    from .guard.training_set import TrainingSet
    from .guidance.core import Constant, SwitchAt
    from .guidance.dynamic import Drop, LocalMinimum, SwitchAfter
    from .pipelines.latent_model import LatentModel
    from .pipelines.protect import load, protect, unprotect
    from .similarity.copy_detector import CopyDetector
    from .similarity.copy_detector_settings import CopyDetectorSettings
    from .training.accelerate import LoopGuard
    from .training.caption_augmentation import CaptionAugmentation
    from .training.data import ImageFolder
    from .training.finetune import FineTune
    from .training.finetune_options import (
        FramingOptions,
        HubDataset,
        LoraOptions,
        LossOptions,
        MemoryOptions,
        OptimizerOptions,
        ReadingOptions,
    )
    from .training.lightning import MemorizationGuard
    from .training.options import BreachResponse, ControlGroup, Interventions

__version__ = "0.1.0"

_MODULES = {
    "pipelines.protect": ("protect", "unprotect", "load"),
    "guidance.core": ("Constant", "SwitchAt"),
    "guidance.dynamic": ("SwitchAfter", "LocalMinimum", "Drop"),
    "training.lightning": ("MemorizationGuard",),
    "training.accelerate": ("LoopGuard",),
    "training.finetune": ("FineTune",),
    "training.finetune_options": (
        "LoraOptions", "OptimizerOptions", "LossOptions", "MemoryOptions", "HubDataset", "FramingOptions",
        "ReadingOptions",
    ),
    "training.caption_augmentation": ("CaptionAugmentation",),
    "training.data": ("ImageFolder",),
    "training.options": ("BreachResponse", "ControlGroup", "Interventions"),
    "guard.guard": ("Guard",),
    "guard.plan": ("ProbePlan",),
    "guard.training_set": ("TrainingSet",),
    "calibration.terms": ("CalibrationTerms",),
    "similarity.copy_detector": ("CopyDetector",),
    "similarity.copy_detector_settings": ("CopyDetectorSettings",),
    "pipelines.latent_model": ("LatentModel",),
    "core.report": ("Report",),
    "core.record": ("Record",),
    "core.estimate": ("Estimate",),
    **{f"commands.{verb}": (verb,) for verb in ("curate", "calibrate", "audit", "verify", "export", "compare")},
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
