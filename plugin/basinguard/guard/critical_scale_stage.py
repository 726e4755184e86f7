"""Critical scales in a report: how much noise training images bear, and held-out ones beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..basin.critical_scale import critical_scale
from ..basin.trajectories import GuidedModel
from ..core import stats
from ..core.report_parts import CriticalScales
from ..core.spread import spread
from .measures import Measures, compare_rises, mean_rise
from .training_set import TrainingSet

ENCODED = 16  # images encoded at once


@dataclass(frozen=True)
class CriticalScalesStage:
    """Critical scale with the caption and without, of images by their index.

    Attributes:
        train, heldout: of training and of held-out images.
    """

    train: dict[int, tuple[float, float]] = field(default_factory=dict)
    heldout: dict[int, tuple[float, float]] = field(default_factory=dict)

    def logs(self, name: str) -> dict[int, float]:
        """Log critical scale with the caption, of the images of `name`."""
        return {i: float(np.log(with_caption)) for i, (with_caption, _) in getattr(self, name).items()}

    def summary(self, base: Measures) -> CriticalScales:
        """The report's part about them; empty where nothing was measured.

        Args:
            base: what the base model was found to do.
        """
        if not self.train:
            return CriticalScales()
        with_caption, without = (np.log([pair[k] for pair in self.train.values()]) for k in (0, 1))
        now, each = self.logs("train"), list(self.train)
        contrast = compare_rises(now, base.sigma_c, self.logs("heldout"), base.heldout_sigma_c)
        return CriticalScales(
            sigma_c=stats.cluster_bootstrap(np.exp(with_caption), each, _geometric),
            sigma_c_uncond=stats.cluster_bootstrap(np.exp(without), each, _geometric),
            caption_effect=stats.cluster_bootstrap(with_caption - without, each),
            since_base=mean_rise(now, base.sigma_c),
            excess=contrast.excess if contrast else None,
        )


def measure_critical_scales(
    training: TrainingSet, model: Any, guided: Callable[[Sequence[str]], GuidedModel], count: int
) -> CriticalScalesStage:
    """Critical scales of `count` training images and as many held-out ones, spread evenly over each set.

    Args:
        training: the images.
        model: has `encode`.
        guided: the model with these prompts.
        count: of each; all where there are fewer.
    """
    held = training.heldout_images
    rows, others = spread(len(training.captions), count), spread(0 if held is None else len(held), count)
    texts = [training.captions[i] for i in rows] + [training.heldout[i] for i in others]
    images = training.images[rows]
    if held is not None:
        images = torch.cat([images, held[others]])
    latents = torch.cat([model.encode(part).cpu() for part in images.split(ENCODED)])
    critical_scales = critical_scale(guided(texts), latents, torch.arange(len(texts)))
    values = iter(zip(critical_scales.with_caption.tolist(), critical_scales.without.tolist(), strict=True))
    return CriticalScalesStage({i: next(values) for i in rows}, {i: next(values) for i in others})


def _geometric(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.log(values).mean(-1)))
