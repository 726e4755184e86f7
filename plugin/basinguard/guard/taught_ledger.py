"""What a run has learnt of its images, probe by probe: truth and base model are described once and kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.spread import spread
from ..diffusion.model import Model
from ..similarity.copy_detector import CopyDetector
from ..similarity.feature_sets import FeatureSet
from ..similarity.taught import Taught, TaughtRuler, measure_shared
from .training_set import TrainingSet

ENCODED = 8  # images through the VAE at once
SAMPLES = 16  # of a probe where held-out prompts are sampled for this alone
NAMED = 3  # images that an error names
SAME_PICTURE = 0.95  # similarity above which a held-out image is taken for a training image


class TaughtLedger:
    """Holds every probe's samples of held-out prompts against true images and the base model's samples.

    The base model's samples are those of its own probe; nothing is sampled for this alone where held-out prompts are
    sampled anyway.

    Args:
        training: whose images, or held-out images, are the truth.
        feature_sets: the rulers, such as `rulers.feature_sets()`.
    """

    def __init__(self, training: TrainingSet, feature_sets: Sequence[FeatureSet]) -> None:
        self.truth, self.feature_sets = true_images(training), tuple(feature_sets)
        self._base: tuple[Tensor, tuple[Hashable, ...]] | None = None
        self._ruler: TaughtRuler | None = None

    def take_base(self, images: Tensor, prompts: Sequence[Hashable]) -> None:
        """Remembers what the base model drew, [M, 3, H, W], and for which prompt each."""
        self._base, self._ruler = ((images.clamp(0, 1) * 255).round().to(torch.uint8).cpu(), tuple(prompts)), None

    @property
    def base(self) -> tuple[Tensor, tuple[Hashable, ...]] | None:
        """What the base model drew, [M, 3, H, W] in [0, 1], and for which prompts; None before its probe."""
        return None if self._base is None else (self._base[0].float() / 255, self._base[1])

    def measure(self, model: Model, images: Tensor, prompts: Sequence[Hashable], copies: Tensor) -> Taught | None:
        """What these samples show; None where the base model was not sampled for enough of their prompts.

        Args:
            model: whose VAE the truth goes through, once.
            images: [n, 3, H, W] in [0, 1].
            prompts: of each.
            copies: which samples are copies, [n] bool.
        """
        if self.base is None:
            return None
        if self._ruler is None:
            self._ruler = TaughtRuler(through_vae(model, self.truth), *self.base, self.feature_sets)
        return measure_shared(self._ruler, images, prompts, copies)

    def state_dict(self) -> dict[str, Any]:
        """The base model's samples, as bytes, with their prompts; empty where there are none yet."""
        return {} if self._base is None else {"images": self._base[0], "prompts": [str(p) for p in self._base[1]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what the base model of an interrupted run had drawn."""
        self._base = (state["images"], tuple(state["prompts"])) if state else None
        self._ruler = None


def true_images(training: TrainingSet) -> Tensor:
    """Held-out images where there are real ones, else the training images: copies count as nothing anyway."""
    held = None if training.stand_in else training.heldout_images
    return training.images if held is None else held


def taught_prompts(training: TrainingSet) -> tuple[str, ...]:
    """Prompts whose samples show what was taught: held-out ones; of a set with one caption for all, that caption.

    Neutral stand-ins ("a street in the rain") would not ask for a subject that is called by a trigger word.

    Example:
        >>> dog = ("a photo of sks dog",)
        >>> taught_prompts(TrainingSet(torch.zeros(2, 3, 8, 8), dog * 2, ("a lake",), stand_in=True)) == dog
        True
    """
    captions = tuple(dict.fromkeys(training.captions))
    return captions if len(captions) == 1 and (training.stand_in or not training.heldout) else training.heldout


def taught_samples(training: TrainingSet) -> tuple[tuple[str, ...], int]:
    """The held-out prompts that a probe samples for this alone, and how many seeds of each: 16 samples or less."""
    prompts = training.heldout
    chosen = tuple(prompts[i] for i in spread(len(prompts), SAMPLES))
    return chosen, max(1, SAMPLES // len(chosen)) if training.stand_in and chosen else 1


@torch.no_grad()
def through_vae(model: Model, images: Tensor) -> Tensor:
    """Images [N, 3, H, W] as the model can draw them at best; as they are where it has no encoder."""
    encode = getattr(model, "encode", None)
    if encode is None:
        return images
    return torch.cat([model.decode(encode(part)) for part in images.split(ENCODED)])


def refuse_copied_truth(training: TrainingSet, detector: CopyDetector) -> None:
    """Held-out images stand for what was *not* trained on.

    A copy detector's threshold allows for false alarms among samples, and one that was measured on these very images
    has the most alike of them on it. So only what is hardly anything but the same picture is refused.

    Raises:
        ValueError: some are copies of training images; they are named by their caption.
    """
    if training.stand_in or training.heldout_images is None:
        return
    least = max(SAME_PICTURE, detector.embedder.metric.threshold)
    matches = detector.matches(training.heldout_images)
    copied = [i for i, match in enumerate(matches) if match.similarity >= least]
    if not copied:
        return
    named = "; ".join(
        f"held-out image {i} ({training.heldout[i]!r}) of training image {matches[i].index} "
        f"({training.captions[matches[i].index]!r})"
        for i in copied[:NAMED]
    )
    more = f" and {len(copied) - NAMED} more" if len(copied) > NAMED else ""
    raise ValueError(
        f"{len(copied)} of {len(training.heldout)} held-out images are copies of training images by "
        f"{detector.embedder.name}: {named}{more}. Take them out of the held-out folder, or out of the training set"
    )
