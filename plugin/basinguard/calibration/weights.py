"""Where the weights of a product come from: one model as it is, or epochs and shares of a fine-tune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..diffusion.model import Model


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
