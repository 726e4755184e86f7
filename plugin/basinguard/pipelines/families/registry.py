"""The families, found by the class of a pipeline."""

from __future__ import annotations

from typing import Any

from ...diffusion.sampling_options import SamplingOptions
from .family import Family
from .flux2_klein import Flux2Klein
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3
from .stable_diffusion_xl import StableDiffusionXL
from .z_image import ZImage

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), StableDiffusion3(), Flux2Klein(), ZImage())
BY_CLASS = {family.class_name: family for family in FAMILIES}


def family_named(class_name: str) -> Family:
    """The family of a pipeline class.

    Raises:
        ValueError: none; lists those that are read.

    Example:
        >>> family_named("StableDiffusionXLPipeline").models
        'SDXL'
    """
    if class_name not in BY_CLASS:
        raise ValueError(f"{class_name} is not read; what can be measured here is one of {', '.join(BY_CLASS)}")
    return BY_CLASS[class_name]


def family_or_none(pipe: Any) -> Family | None:
    """The family of a loaded pipeline, or of a class derived from one; None for a class that is not read."""
    names = (kind.__name__ for kind in type(pipe).__mro__)
    return next((BY_CLASS[name] for name in names if name in BY_CLASS), None)


def in_lists(pipe: Any) -> bool:
    """Whether the denoiser of a pipeline, whose class need not be one that is read, takes and gives lists."""
    family = family_or_none(pipe)
    return family is not None and family.in_lists


def family_of(pipe: Any) -> Family:
    """The same.

    Raises:
        ValueError: a class that is not read; see `family_named`.
    """
    return family_or_none(pipe) or family_named(type(pipe).__name__)


def scale_of(pipe: Any, sampling: SamplingOptions) -> float:
    """The guidance scale of plain CFG: as asked for, or what is usual for the family of a pipeline."""
    return family_of(pipe).usual_scale if sampling.scale is None else sampling.scale


def why_no_rule(pipe: Any) -> str:
    """One line about a guidance-distilled model."""
    return (
        f"this {type(pipe).__name__} is guidance-distilled: it has no unconditional branch, so no rule can act on it; "
        "what can be chosen is the strength of the fine-tune and the epoch"
    )


def tuned_parts(pipe: Any) -> tuple[str, ...]:
    """The components of a pipeline that a fine-tune may change."""
    return family_of(pipe).tuned_parts(pipe)


def networks_of(pipe: Any) -> list[Any]:
    """Every network of a pipeline that a measurement runs."""
    return family_of(pipe).networks(pipe)
