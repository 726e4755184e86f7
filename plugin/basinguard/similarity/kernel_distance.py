"""Quality as one number for each sample: kernel distance (KID) to fixed images that were not trained on.

Lower is better. Reference images must not be training images, since being close to those is copying.
`distribution_metrics.kid` is the same distance as a single number; as a mean over samples it has an interval that keeps
the seeds of one prompt together, and two rules on the same pairs can be compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 16  # reference images; below that their own choice decides more than the samples


@dataclass(frozen=True)
class KernelDistance:
    """Images to their shares of the kernel distance; lower is better.

    Attributes:
        embed: images [B, 3, H, W] in [0, 1] to unit vectors [B, D], such as `ClipScore.embed_images`.
        reference: unit vectors of images that were not trained on, [M, D], M >= 16.
        groups: the prompt of each of them, [M], where every prompt has as many; None where they are random draws.
        method: the embedder and the reference in words; goes into every `Estimate`.

    Raises:
        ValueError: too few reference images.
    """

    embed: Callable[[Tensor], Tensor]
    reference: Tensor
    method: str
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.reference) < FEWEST:
            raise ValueError(f"{len(self.reference)} reference images given; a kernel distance needs at least {FEWEST}")

    @classmethod
    def to_images(
        cls, embed: Callable[[Tensor], Tensor], images: Tensor, *, name: str, what: str, groups: Tensor | None = None
    ) -> KernelDistance:
        """The distance to images [M, 3, H, W]; `name` names the embedder, `what` the images, such as "held-out images".

        Raises:
            ValueError: too few images.
        """
        method = f"kernel distance to {len(images)} {what} (lower is better), {name}"
        return cls(embed, embed(images), method[:180], groups)

    def __call__(self, images: Tensor, groups: Tensor | None = None) -> Tensor:
        """Share of each image, [B]; their mean is the distance. All samples of one rule have to come at once.

        Args:
            images: [B, 3, H, W] in [0, 1].
            groups: their prompts, [B], where every prompt has as many images; None where prompts are random draws.
        """
        return kernel_shares(self.embed(images), self.reference, groups, self.groups)


def kernel_shares(
    samples: Tensor, reference: Tensor, groups: Tensor | None = None, reference_groups: Tensor | None = None
) -> Tensor:
    """One number for each sample, whose mean is the unbiased squared kernel distance, [N] float64.

    Each is the distance plus the sample's influence on it (first-order jackknife pseudo-value), so that a bootstrap of
    their mean is one of the distance, given the reference. Where samples cannot be told from the reference the first
    order vanishes, and a 95% interval covers about 85% (measured on 96 directions).

    The kernel is KID's cubic one, (<x, y> + 1)^3. KID divides <x, y> by D because its features have D coordinates of
    size 1; unit vectors need no division.

    Two samples of different places in an even round of prompts share their prompt less often than two random draws
    do, which would make the distance too small. With `groups` every prompt weighs as much as it should; a prompt with a
    single sample has no pair of its own, and its part stays missing.

    Args:
        samples: unit vectors, [N, D], N >= 2.
        reference: unit vectors, [M, D], M >= 2.
        groups, reference_groups: prompts, [N] and [M], of a set with as many of each; None for random draws.

    Raises:
        ValueError: shapes that do not fit, or fewer than 2 of either.

    Source: distance: Binkowski et al., arXiv 1801.01401, section 4; Gretton et al., JMLR 13 (2012), eq. 3.
    Pseudo-values of U-statistics: Arvesen, Ann. Math. Statist. 40 (1969).

    Example:
        >>> flat = torch.tensor([[1.0, 0.0]] * 3)
        >>> kernel_shares(flat, flat).tolist(), kernel_shares(flat, -flat).tolist()
        ([0.0, 0.0, 0.0], [16.0, 16.0, 16.0])
    """
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features {list(samples.shape)} and {list(reference.shape)} given; expected [N, D] and [M, D]"
        )
    if min(len(samples), len(reference)) < 2:
        raise ValueError(
            f"{len(samples)} samples and {len(reference)} reference images given; expected at least 2 each"
        )
    x, y = samples.double(), reference.double()
    to_reference = _kernel(x, y).mean(1)
    pull = _others(x, groups) - to_reference
    distance = pull.mean() - to_reference.mean() + _others(y, reference_groups).mean()
    return distance + 2 * (pull - pull.mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T + 1) ** 3


def _others(x: Tensor, groups: Tensor | None) -> Tensor:
    """Mean kernel of each row with another draw, [N]."""
    group = torch.arange(len(x)) * 0 if groups is None else groups.cpu()
    same = group[:, None] == group
    others = same.sum(1, keepdim=True) - same.long()  # of the column's group, the row itself left out
    weight = torch.where(same, 1 / others.clamp(min=1), 1 / same.sum(0)).double().fill_diagonal_(0)
    return (_kernel(x, x) * weight).sum(1) / weight.sum(1)
