"""Samples of held-out prompts: what a mitigation leaves of what was taught."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..basin.plain_run import run_plain
from ..basin.trajectories import Pairs as Trajectories
from ..calibration.lessons import truth_of
from ..core import seeds as seed_table
from ..core.estimate import Estimate
from ..diffusion.sampling import draw_noise
from ..guard.taught_ledger import through_vae
from ..guard.training_set import TrainingSet
from ..similarity.rulers import feature_sets
from ..similarity.taught import TaughtRuler
from .base import needs_base
from .checkpoints import strength_of
from .testbed import Batch, Testbed

SAMPLES = 32  # of held-out prompts, at least


@dataclass(frozen=True)
class HeldOut:
    """Prompts that were not trained on, and what their samples are held against.

    Attributes:
        batch: every prompt with seeds of its own.
        ruler: of what was taught.
    """

    batch: Batch
    ruler: TaughtRuler

    def taught(self, testbed: Testbed, images: Tensor) -> Estimate | None:
        """What samples of the batch show of what was taught, net of copies."""
        return self.ruler.measure(images, self.batch.prompts, testbed.guard.is_copy(images)).value


def held_out(testbed: Testbed, unseen: tuple[str, ...], pixels: Tensor | None, first_seed: int) -> HeldOut | None:
    """The held-out part of a comparison; None without a base model, against which alone it can be measured.

    Args:
        testbed: the model, and its base.
        unseen: captions of held-out images that were not trained on; stand-ins take their place where there are none.
        pixels: held-out images, the truth; the training images where there are none.
        first_seed: seeds that nothing else is sampled with.
    """
    if needs_base(testbed):
        return None
    training = testbed.guard.training
    if pixels is not None and unseen:
        training = TrainingSet(training.images, training.captions, unseen, pixels[: len(unseen)])
    truth = truth_of(training, feature_sets())
    prompts = unseen or truth.prompts
    if not prompts:
        return None
    repeats = -(-SAMPLES // len(prompts))
    batch = Batch(prompts * repeats, tuple(range(first_seed, first_seed + repeats * len(prompts))))
    images = truth.images if pixels is None else pixels
    return HeldOut(batch, _ruler(testbed, batch, images))


@torch.no_grad()
def _ruler(testbed: Testbed, batch: Batch, truth: Tensor) -> TaughtRuler:
    """The ruler, with samples of the base model that are nobody's row."""
    prompts = tuple(dict.fromkeys(batch.prompts))
    index = torch.tensor([prompts.index(prompt) for prompt in batch.prompts])
    seeds = torch.arange(len(batch)) + seed_table.COMPARISON_TAUGHT
    model = testbed.model
    pairs = Trajectories(index, seeds, draw_noise(seeds.tolist(), model.latent_shape))
    with strength_of(testbed, 0.0):
        ends = run_plain(testbed.guard.guided_model(model, prompts), pairs).ends
        return TaughtRuler(through_vae(model, truth), model.decode(ends), batch.prompts, feature_sets())
