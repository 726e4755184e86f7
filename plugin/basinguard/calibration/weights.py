"""Where the weights of a product come from: one model as it is, or epochs and shares of a fine-tune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..core.recorded_weights import RecordedSchedule, RecordedWeights
from ..diffusion.model import Model
from ..guidance.strength import StrengthSchedule
from .candidate import Product
from .terms import CalibrationTerms


@dataclass(frozen=True)
class OpenWeights:
    """A model with the weights of a product in it.

    Attributes:
        model: what is sampled.
        anchored: the same with the base's unconditional branch; only a LoRA at full strength has one.
    """

    model: Model
    anchored: Model | None = None


class Weights(Protocol):
    """Gives a model at an epoch and a share of its fine-tune.

    Attributes:
        epochs: that can be had, oldest first; (None,) for a model that is given as it is.
        graded: whether strengths besides 1 can be had, and with 0 the base model.
    """

    @property
    def epochs(self) -> Sequence[int | None]: ...  # noqa: D102

    @property
    def graded(self) -> bool: ...  # noqa: D102

    def at(self, epoch: int | None, strength: float) -> AbstractContextManager[OpenWeights]:
        """Inside, the model holds base + strength * (tuned - base) of that epoch."""
        ...


@runtime_checkable
class SchedulableWeights(Protocol):
    """Weights whose strength may also depend on the timestep."""

    def scheduled(self, epoch: int | None, schedule: StrengthSchedule) -> AbstractContextManager[OpenWeights]:
        """Inside, the model's denoiser holds at every call the share of its timestep; other parts hold the whole."""
        ...


@runtime_checkable
class FilterableWeights(Protocol):
    """Weights whose change can be filtered."""

    def filtered(self, epoch: int | None, strength: float, update_filter: str) -> AbstractContextManager[OpenWeights]:
        """Inside, the model holds base + strength * filter(tuned - base) of that epoch; a text encoder all of it.

        Raises:
            ValueError: the filter leaves all of that change, or none.
        """
        ...


def product_weights(weights: Weights, product: Product | RecordedWeights) -> AbstractContextManager[OpenWeights]:
    """Inside, the weights of a product."""
    schedule = product.strength_schedule
    if product.update_filter:
        assert isinstance(weights, FilterableWeights)
        return weights.filtered(product.epoch, product.strength, product.update_filter)
    if schedule is None:
        return weights.at(product.epoch, product.strength)
    assert isinstance(weights, SchedulableWeights)
    return weights.scheduled(product.epoch, StrengthSchedule(schedule.transitions, schedule.strengths))


def recorded(schedule: StrengthSchedule) -> RecordedSchedule:
    """A schedule as records and products hold it."""
    return RecordedSchedule(transitions=schedule.transitions, strengths=schedule.strengths)


def require_schedulable(weights: Weights, terms: CalibrationTerms) -> None:
    """Refuses strengths by timestep of weights that have none.

    Raises:
        ValueError: the base model is not known, or the weights cannot be switched.
    """
    if terms.strength_schedules and not (weights.graded and isinstance(weights, SchedulableWeights)):
        raise ValueError("strength_schedules need a LoRA and the base model below it; give both, or leave them out")


def require_filterable(weights: Weights, terms: CalibrationTerms) -> None:
    """Refuses filters of weights whose change is not known, and those that would change nothing or leave nothing.

    Raises:
        ValueError: says which.
    """
    if terms.update_filters and not (weights.graded and isinstance(weights, FilterableWeights)):
        raise ValueError("update_filters need the base model, whose change they filter; give it, or leave them out")
    for name in terms.update_filters:
        with product_weights(weights, RecordedWeights(epoch=weights.epochs[-1], update_filter=name)):
            pass


@dataclass(frozen=True)
class FixedWeights:
    """One model as it is: its base is not known, so there is no share of it."""

    model: Model
    anchored: Model | None = None
    epochs: tuple[None, ...] = (None,)
    graded: bool = False

    @contextmanager
    def at(self, epoch: int | None, strength: float) -> Iterator[OpenWeights]:
        """The model.

        Raises:
            ValueError: another epoch or strength than there is.
        """
        if epoch is not None or strength != 1:
            raise ValueError(f"epoch {epoch}, strength {strength:g}: this model is given as it is, without its base")
        yield OpenWeights(self.model, self.anchored)
