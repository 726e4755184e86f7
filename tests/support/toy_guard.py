"""The closed-form memorizer as a model that a guard measures: a point of 12 numbers is an image of 3 x 2 x 2."""

import torch

from basinguard.core.metric import Metric
from basinguard.diffusion.toy import gaussian_memorizer
from basinguard.guard.guard import Guard
from basinguard.guard.plan import ProbePlan
from basinguard.guard.training_set import TrainingSet

STRONG = gaussian_memorizer(count=64, dim=12, leak=1e-3)
WEAK = gaussian_memorizer(count=64, dim=12, leak=0.9)


class Points:
    """A memorizer as a text-to-image model: a point of 12 numbers is an image of 3 x 2 x 2."""

    latent_shape = (12,)

    def __init__(self, toy=STRONG, empty=-1):
        self.toy, self.schedule, self.empty, self.evals = toy, toy.schedule, empty, 0

    def denoiser(self, prompts):
        index = torch.tensor([int(prompt.split()[-1]) for prompt in prompts] + [self.empty])

        def denoise(x, t, p):
            self.evals += len(x)
            return self.toy(x, t, index[p])

        return denoise

    def decode(self, latents):
        return latents.reshape(-1, 3, 2, 2)

    def encode(self, images):
        return images.flatten(1)


class Nearness:
    """Similarity 1 for the same point, less with distance."""

    name = "nearness"
    metric = Metric(embedder="nearness", threshold=0.9, source="closed form")

    def __call__(self, images):
        bumps = torch.exp(-torch.cdist(images.flatten(1), STRONG.points).square())
        return torch.nn.functional.normalize(torch.cat([bumps, 1e-3 * torch.ones(len(bumps), 1)], 1))


def make_guard(texts=("point 0", "point 1", "point 2", "point 3"), heldout=("point 60", "point 61"), **changes):
    images = STRONG.points[[int(c.split()[-1]) for c in texts]].reshape(-1, 3, 2, 2)
    held = STRONG.points[[int(c.split()[-1]) for c in heldout]].reshape(-1, 3, 2, 2)
    training = TrainingSet(images, tuple(texts), tuple(heldout), held if heldout else None)
    return Guard(training, Nearness(), ProbePlan(**{"captions": 4, "seeds": 4, "timesteps": 20, **changes}))
