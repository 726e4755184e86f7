"""A guard against memorization for people who fine-tune Stable Diffusion 2.1 on small image sets.

    basinguard.protect(pipe, rule)        a rule inside an unmodified diffusers pipeline
    basinguard.load(directory)            an exported checkpoint, sampled by its own rule
    basinguard.MemorizationGuard(...)     the Lightning callback
    basinguard.FineTune, ImageFolder      a LightningModule and LightningDataModule to go with it

Names are looked up when they are used, so importing the package loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "protect": "pipelines.protect",
    "unprotect": "pipelines.protect",
    "load": "pipelines.protect",
    "MemorizationGuard": "training.lightning",
    "BreachResponse": "training.options",
    "ControlGroup": "training.options",
    "Interventions": "training.options",
    "CopyDetectorSettings": "similarity.copy_detector_settings",
    "ProbePlan": "guard.plan",
    "CalibrationTerms": "calibration.terms",
    "FineTune": "training.finetune",
    "LoraOptions": "training.finetune_options",
    "OptimizerOptions": "training.finetune_options",
    "LossOptions": "training.finetune_options",
    "MemoryOptions": "training.finetune_options",
    "ImageFolder": "training.data",
    "HubDataset": "training.finetune_options",
    "FramingOptions": "training.finetune_options",
    "ReadingOptions": "training.finetune_options",
    "CaptionAugmentation": "training.caption_augmentation",
    "LatentModel": "pipelines.latent_model",
    "Guard": "guard.guard",
    "Record": "core.record",
    "Constant": "guidance.core",
    "SwitchAt": "guidance.core",
    "SwitchAfter": "guidance.dynamic",
    "LocalMinimum": "guidance.dynamic",
    "Drop": "guidance.dynamic",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
