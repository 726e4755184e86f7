"""Whether a filter of the update can act on a model: said by name, before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.update_filter import PARTS, update_filter
from .families.registry import family_of

UNET = "unet"  # the denoiser whose layers the filters of parts are named by


def require_filters(pipe: Any, names: Sequence[str], base: str) -> None:
    """Refuses filters of a change that is not known, and of layers that a model does not have.

    Args:
        pipe: of a family that is read.
        names: of the filters.
        base: id or directory of the base model; "" where it is not known.

    Raises:
        ValueError: says what to give instead.
    """
    if not names:
        return
    if not base:
        raise ValueError(
            f"update_filters {', '.join(names)}: a filter is of the change from the base model, which is not known; "
            "give the base (--base), or leave them out"
        )
    family, parts = family_of(pipe), [name for name in names if name in PARTS]
    if parts and family.denoiser_name != UNET:
        raise ValueError(
            f"update_filters {', '.join(parts)}: a {type(pipe).__name__} has a transformer, without cross-attention "
            "and residual blocks of a UNet; take rank-N, or leave them out"
        )


def require_effect(name: str, trained: Sequence[str]) -> None:
    """Refuses a filter of parts that would leave all of what is trained, or nothing.

    Args:
        name: of the filter.
        trained: names of the denoiser's trained parameters.

    Raises:
        ValueError: it would.
    """
    inside = update_filter(name).inside
    if inside is None or not trained:
        return
    left = {inside(each) for each in trained}
    if len(left) == 1:
        what = "all" if left == {True} else "nothing"
        raise ValueError(
            f"update_filters {name}: leaves {what} of what is trained here; leave it out, or train other layers "
            "(lora.targets, or method=full)"
        )
