"""The states of a run that mitigations choose among: the model under test, its checkpoints, and shares of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from peft.helpers import rescale_adapter_scale

from ..calibration.weights import OpenWeights
from ..pipelines.interpolation import Blend
from ..pipelines.latent_model import LatentModel
from ..pipelines.loading import load_pipeline
from .base import needs_base
from .testbed import Testbed

UNET = ("unet",)


def checkpoint(testbed: Testbed, index: int) -> Any:
    """The pipeline of an earlier state, 0 for the most trained one; one is held at a time, its networks frozen."""
    path = testbed.checkpoints[min(index, len(testbed.checkpoints) - 1)]
    if testbed.cache.get("checkpoint", (None,))[0] != path:
        pipe = load_pipeline(path)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.requires_grad_(False)
        testbed.cache["checkpoint"] = (path, pipe)
    return testbed.cache["checkpoint"][1]


def checkpoint_name(testbed: Testbed, index: int) -> str:
    """Its folder's name."""
    return testbed.checkpoints[index].name if index < len(testbed.checkpoints) else "no such checkpoint"


@contextmanager
def state(testbed: Testbed, epoch: int | None, strength: float = 1.0) -> Iterator[Any]:
    """Inside, a pipeline whose UNet is fine-tuned by so much; outside, bit for bit what it was.

    Args:
        testbed: whose base is known where the strength is not 1.
        epoch: None for the model under test; else of its checkpoints the least trained one is 0.
        strength: share of the fine-tune, in [0, 1].
    """
    pipe = testbed.pipe if epoch is None else checkpoint(testbed, index_of(testbed, epoch))
    if strength == 1:
        yield pipe
        return
    with strength_of(testbed, strength) if epoch is None else Blend(pipe, testbed.base, parts=UNET).at(strength):
        yield pipe


def index_of(testbed: Testbed, epoch: int) -> int:
    """Of a checkpoint among those of the testbed, which lie most trained first."""
    return len(testbed.checkpoints) - 1 - epoch


def strength_of(testbed: Testbed, strength: float) -> AbstractContextManager[Any]:
    """Inside, the UNet under test is fine-tuned by so much and the rest is base; outside, bit for bit what it was."""
    if getattr(testbed.pipe.unet, "peft_config", None):
        return rescale_adapter_scale(testbed.pipe.unet, strength)
    return Blend(testbed.pipe, testbed.base, parts=UNET).at(strength)


class TestedWeights:
    """The states of the run and, where its base is known, every share of them (`calibration.weights.Weights`).

    An epoch is a checkpoint, the least trained one 0, or None for the model under test. Where a LoRA is tested beside
    its own base's weights, checkpoints have no base to be mixed with, so there are none to choose.
    """

    __test__ = False  # not a test class, whatever its name begins with

    def __init__(self, testbed: Testbed) -> None:
        self.testbed, self.graded = testbed, not needs_base(testbed)
        mixable = testbed.base is not None or not self.graded
        self.epochs: tuple[int | None, ...] = (*range(len(testbed.checkpoints) if mixable else 0), None)

    @contextmanager
    def at(self, epoch: int | None, strength: float) -> Iterator[OpenWeights]:
        """A state at a strength."""
        with state(self.testbed, epoch, strength) as pipe:
            yield OpenWeights(self.testbed.model if epoch is None else LatentModel(pipe))
