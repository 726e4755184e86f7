"""The epochs of a guarded run and every share of their fine-tune, as a calibration chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..calibration.terms import CalibrationTerms
from ..calibration.weights import OpenWeights
from ..exports.model_kind import kind_of
from ..guidance.strength import StrengthSchedule
from ..pipelines.families.registry import family_of, tuned_parts
from ..pipelines.filter_check import require_effect, require_filters
from ..pipelines.interpolation import Blend
from ..pipelines.latent_model import LatentModel
from .isolation import averaged, holding
from .protocols import TrainedModule, with_parts

WeightsSource = Callable[[], Mapping[str, Tensor] | None]  # trained parameters by name; None for those the module holds


@dataclass
class EpochSeries:
    """The weights of a run, by epoch and strength (`calibration.weights.Weights`); a context that ends as it began.

    Args:
        module: holds one epoch at a time; its own weights are back at the end.
        states: trained parameters of each epoch, read when they are needed; oldest first.
        base: pipeline of the base model; None where it is not known, so that there are no shares.
        dtype: precision of the runs.
        anchor: whether the base's unconditional branch is wanted beside each whole epoch.
        train_steps: updates at each epoch.
    """

    module: TrainedModule
    states: Mapping[int, WeightsSource]
    base: Any = None
    dtype: torch.dtype | None = None
    anchor: bool = False
    train_steps: Mapping[int, int] = field(default_factory=dict)
    _held: ExitStack = field(default_factory=ExitStack, repr=False)
    _epoch: int | None = None
    _pipe: Any = None
    _blend: Blend | None = None

    @property
    def epochs(self) -> tuple[int | None, ...]:
        """Those that can be had, oldest first."""
        return tuple(self.states)

    @property
    def graded(self) -> bool:
        """Whether there are shares of them."""
        return self.base is not None

    @contextmanager
    def at(self, epoch: int | None, strength: float) -> Iterator[OpenWeights]:
        """Inside, a stock pipeline of its own holds base + strength * (tuned - base) of that epoch."""
        assert epoch is not None
        self._hold(epoch)
        anchored = LatentModel(self.module.pipe, dtype=self.dtype, anchor=True) if self.anchor else None
        if self._blend is None:
            yield OpenWeights(LatentModel(self._pipe, dtype=self.dtype), anchored)
            return
        with self._blend.at(strength) as model:
            yield OpenWeights(model, anchored if strength == 1 else None)

    @contextmanager
    def scheduled(self, epoch: int | None, schedule: StrengthSchedule) -> Iterator[OpenWeights]:
        """Inside, that pipeline's denoiser holds at every call the share of its timestep."""
        assert epoch is not None
        self._hold(epoch)
        assert self._blend is not None
        with self._blend.following(schedule) as model:
            yield OpenWeights(model)

    @contextmanager
    def filtered(self, epoch: int | None, strength: float, update_filter: str) -> Iterator[OpenWeights]:
        """Inside, that pipeline holds base + strength * filter(tuned - base) of that epoch."""
        assert epoch is not None
        self._hold(epoch)
        assert self._blend is not None
        self._blend.require_effect(update_filter)
        with self._blend.at(strength, update_filter) as model:
            yield OpenWeights(model)

    @contextmanager
    def unmerged(self, epoch: int | None) -> Iterator[Any]:
        """Inside, that pipeline with the module's own LoRA, apart from the base's weights."""
        assert epoch is not None
        self._hold(epoch)
        with averaged(self.module):
            parts = {part: getattr(self.module.pipe, part) for part in tuned_parts(self.module.pipe)}
            yield with_parts(self._pipe, **parts)

    def _hold(self, epoch: int) -> None:
        """Puts an epoch into the module, in place of the one that was there."""
        if self._pipe is not None and self._epoch == epoch:
            return
        self.close()
        self._held.enter_context(holding(self.module, self.states[epoch]()))
        self._epoch, self._pipe = epoch, self.module.export_pipeline()
        self._pipe.set_progress_bar_config(disable=True)
        self._blend = None if self.base is None else Blend(self._pipe, self.base, dtype=self.dtype)

    def close(self) -> None:
        """Gives the module its own weights back."""
        self._pipe, self._blend = None, None
        self._held.close()

    def __enter__(self) -> EpochSeries:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def has_adapter(module: TrainedModule) -> bool:
    """Whether a LoRA is trained, rather than whole weights."""
    return any(getattr(getattr(module.pipe, part), "peft_config", None) for part in tuned_parts(module.pipe))


def require_lora_to_schedule(module: TrainedModule, terms: CalibrationTerms) -> None:
    """Refuses strengths by timestep of a run whose end could not ship them, before anything is trained.

    Raises:
        ValueError: no LoRA is trained, or it is of a family whose LoRA files are not written here.
    """
    if not terms.strength_schedules:
        return
    kind = kind_of(module.pipe)
    if kind.flow:
        raise ValueError(
            f"strength_schedules: no directory with an unmerged LoRA of {kind.name} is written here; leave them out"
        )
    if not has_adapter(module):
        raise ValueError(
            "strength_schedules need a LoRA, and whole weights are trained: take method=lora, or leave them out and "
            "calibrate what `extract_lora` makes of the fine-tune"
        )


def require_change_to_filter(module: TrainedModule, terms: CalibrationTerms) -> None:
    """Refuses filters of the update of a run whose end could not take them, before anything is trained.

    Raises:
        ValueError: the base is not known, or a filter would leave all of what is trained, or nothing.
    """
    require_filters(module.pipe, terms.update_filters, module.base_id)
    trained = [name for name, p in family_of(module.pipe).denoiser(module.pipe).named_parameters() if p.requires_grad]
    for name in terms.update_filters:
        require_effect(name, trained)


def origin_weights(module: TrainedModule, base: Any) -> dict[str, Tensor] | None:
    """The base model's values of a full fine-tune's parameters, by the module's names; None for adapters.

    Args:
        module: what is trained.
        base: pipeline of what it began as; None where it is not known.
    """
    if base is None or has_adapter(module):
        return None
    parts = {part: getattr(module.pipe, part) for part in tuned_parts(module.pipe)}
    places = {id(p): (part, key) for part, own in parts.items() for key, p in own.named_parameters()}
    trained = [(name, places[id(p)]) for name, p in module.named_parameters() if p.requires_grad]
    return {name: getattr(base, part).get_parameter(key).detach().cpu() for name, (part, key) in trained}
