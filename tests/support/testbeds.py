"""A testbed on a random pipeline: 32 x 32 px images, four sampling steps, milliseconds each."""

from __future__ import annotations

import torch

from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet
from basinguard.mitigations.testbed import Testbed
from basinguard.pipelines.loading import load_pipeline
from basinguard.similarity.structure import Structure

CAPTIONS = ("a ball", "a star", "a box")
STEPS = 4


def build_testbed(directory, *, base=True, align=None, **options):
    """A pipeline and, as its base, the same with other weights in its UNet."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    guard = Guard(TrainingSet(images, CAPTIONS), Structure(), ProbePlan(captions=1, timesteps=STEPS, scale=3.0), align)
    return Testbed(load_pipeline(directory), guard, _other(directory) if base else None, **options)


def _other(directory):
    pipe = load_pipeline(directory)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(0.9)
    return pipe
