"""When the predicted clean latents already say how a branch will end.

What a trajectory ends in shows in the conditional prediction of its clean latents long before the end: near the
training image, or far from it and going nowhere. How near is near is not assumed but read off the trajectories that
were run to the end and looked at in this very measurement; whatever lies between runs to the end and is looked at too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEAR_FOR = 3  # evaluations in a row that must be near
FAR_FOR = 6  # evaluations in a row that must be far; a branch that is caught late approaches slowly at first
STILL = 0.998  # share of its distance that it must have kept over them to count as going nowhere
LEAST = 3  # outcomes of each kind below which nothing is read off them


@dataclass(frozen=True)
class Anchors:
    """Clean latents of the training images, one or more for each prompt (duplicates, mirror images).

    Attributes:
        latents: [M, ...].
        prompt: whose image each is, [M].
    """

    latents: Tensor
    prompt: Tensor

    def distance(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Distance of each row from the nearest image of its own prompt, in units of the images' spread, [B]."""
        far = torch.cdist(x.flatten(1).float(), self._flat)
        far[prompt[:, None] != self.prompt] = float("inf")
        return far.min(1).values / self._spread

    @property
    def _flat(self) -> Tensor:
        return self.latents.flatten(1).float()

    @property
    def _spread(self) -> Tensor:
        flat = self._flat
        about = flat - flat.mean(0) if len(self.prompt.unique()) > 1 else flat
        return about.norm(dim=1).mean()


@dataclass(frozen=True)
class Limits:
    """What decides, learnt from trajectories that were run to the end.

    Attributes:
        near: distance at and below which the image is reproduced; 0 where no distance says so.
        far: distance at and above which it is not; infinite where no distance says so.
        yes_from: first evaluation at which "near" has never deceived.
        no_from: first evaluation at which "far" has never deceived.
        middle: between the two, where a guess changes sides; a guess need not be certain.
    """

    near: float
    far: float
    yes_from: int
    no_from: int
    middle: float


def learn(trail: Tensor, outcomes: Tensor, unguided: Tensor) -> Limits:
    """Limits from guided trajectories and from unguided ends, both looked at.

    Near is what half of the images reproduced reach, or a quarter of the distance to the nearest other end; far is a
    quarter further than any image reproduced, and no less than three quarters of that distance. In between, nothing is
    decided. Nothing is decided either where some end that is no copy is nearer than some that is: there the embedder
    sees more than the distance of latents does.

    Args:
        trail: distance of the predicted clean latents at every evaluation of the guided trajectories, [K, N].
        outcomes: whether their ends reproduce the image, [N] bool.
        unguided: distance of unguided ends that do not reproduce it, [M].
    """
    yes, no = trail[-1, outcomes], torch.cat([trail[-1, ~outcomes], unguided])
    near, far = 0.0, float("inf")
    if len(yes) >= LEAST:
        nearest_no = float(no.min()) if len(no) else 0.0
        near = min(max(float(yes.median()), 0.25 * nearest_no), 0.8 * nearest_no)
    if len(no) >= LEAST and len(yes) >= LEAST:
        far = max(0.75 * float(no.min()), 1.25 * float(yes.max()))
    middle = (near + min(far, 1.0)) / 2
    if len(yes) and len(no) and yes.max() >= no.min():
        near, far = 0.0, float("inf")
    return Limits(
        near,
        far,
        yes_from=_after_last((trail[:, ~outcomes] <= near).any(1)),
        no_from=_after_last((trail[:, outcomes] >= far).any(1)),
        middle=middle,
    )


def _after_last(deceived: Tensor) -> int:
    where = deceived.nonzero()
    return int(where[-1]) + 1 if len(where) else 0


class ExitDecider:
    """Follows branches and decides them; undecided ones must be looked at.

    Args:
        limits: from `learn`.
        anchors: the training images' latents.
        prompt: of each branch, [N].
    """

    def __init__(self, limits: Limits, anchors: Anchors, prompt: Tensor) -> None:
        self.limits, self.anchors, self.prompt = limits, anchors, prompt
        self.distances = torch.full((FAR_FOR, len(prompt)), float("nan"))
        self.outcome = torch.full((len(prompt),), -1)  # 1 reproduced, 0 not, -1 undecided

    def __call__(self, rows: Tensor, index: Tensor, denoised: Tensor) -> Tensor:
        """Whether each row is decided now; see `trajectories.StopTest`."""
        self.distances[:, rows] = self.distances[:, rows].roll(-1, 0)
        self.distances[-1, rows] = self.anchors.distance(denoised, self.prompt[rows])
        last = self.distances[:, rows]
        going_nowhere = (last[-1] >= STILL * last[0]) & (last[-1] >= STILL * last[-2])
        yes = (last[-NEAR_FOR:] <= self.limits.near).all(0) & (index - NEAR_FOR + 1 >= self.limits.yes_from)
        no = (last >= self.limits.far).all(0) & going_nowhere & (index >= self.limits.no_from)
        self.outcome[rows] = torch.where(yes, 1, torch.where(no, 0, -1))
        return yes | no
