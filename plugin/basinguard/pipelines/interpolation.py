"""Weights between the base model's and the fine-tuned ones, in place.

Going from base to tuned weights by a share s is what a LoRA loader does with strength s once the adapter is merged,
and what model merging does with a full fine-tune: one mechanism for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calibration.weights import OpenWeights
from .families.registry import tuned_parts
from .latent_model import LatentModel


class Blend:
    """A fine-tuned pipeline whose weights can be taken back towards its base's.

    Only weights that differ are held, the tuned ones as a copy, so a LoRA on attention layers takes little memory.

    Args:
        tuned: pipeline without adapters; outside `at` it is exactly as it was given.
        base: what it was fine-tuned from; must stay as it is.
        dtype: precision of the runs.
        parts: the pipeline's components that are interpolated; None for all that a fine-tune may change.

    Raises:
        ValueError: the two have other layers, so they cannot be mixed.

    Source: Wortsman et al., arXiv 2109.01903, eq. 1 (interpolation in weight space).
    """

    def __init__(
        self, tuned: Any, base: Any, *, dtype: torch.dtype | None = None, parts: Sequence[str] | None = None
    ) -> None:
        self.tuned, self.dtype = tuned, dtype
        self._differing: list[tuple[Tensor, Tensor, Tensor]] = []
        for name in tuned_parts(tuned) if parts is None else parts:
            here, there = getattr(tuned, name).state_dict(), getattr(base, name).state_dict()
            _require_same_layers(name, here, there)
            for key, weight in here.items():
                origin = there[key].to(weight)
                if weight.is_floating_point() and not torch.equal(weight, origin):
                    self._differing.append((weight, weight.clone(), origin))

    @contextmanager
    def at(self, strength: float) -> Iterator[LatentModel]:
        """Inside, the weights are base + strength * (tuned - base)."""
        try:
            for weight, tuned, origin in self._differing:
                weight.copy_(torch.lerp(origin.float(), tuned.float(), strength))
            yield LatentModel(self.tuned, dtype=self.dtype)
        finally:
            for weight, tuned, _ in self._differing:
                weight.copy_(tuned)


@dataclass(frozen=True)
class BlendedWeights:
    """One fine-tune and every share of it, as a calibration chooses among them (`calibration.weights.Weights`).

    Attributes:
        blend: of the fine-tune and its base.
        anchored: the fine-tune with the base's unconditional branch, where it is a LoRA.
    """

    blend: Blend
    anchored: LatentModel | None = None
    epochs: tuple[None, ...] = (None,)
    graded: bool = True

    @contextmanager
    def at(self, epoch: int | None, strength: float) -> Iterator[OpenWeights]:
        """The model at a strength; there is no epoch to choose."""
        with self.blend.at(strength) as model:
            yield OpenWeights(model, self.anchored if strength == 1 else None)


def _require_same_layers(part: str, here: dict[str, Tensor], there: dict[str, Tensor]) -> None:
    differing = sorted(here.keys() ^ there.keys()) or [k for k in here if here[k].shape != there[k].shape]
    if differing:
        raise ValueError(
            f"{part}: {len(differing)} weights, such as {differing[0]!r}, are not the same in the model and the base "
            "it is said to come from; give the base it was fine-tuned from"
        )
