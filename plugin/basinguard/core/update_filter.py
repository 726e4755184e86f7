"""Filters of a fine-tune's update: which part of the change of the weights stays, chosen without data.

The weights are base + filter(tuned - base), of the denoiser alone: a text encoder's change stays whole. Which filter
keeps what was taught and loses the copies is measured like any other product; nothing follows from its formula.

Source of `rank-N`: Eckart and Young 1936 (the truncated singular value decomposition is the nearest of its rank).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RANK = re.compile(r"rank-([1-9][0-9]{0,3})")
MOST_LETTERS = 100  # of an unknown name that is repeated


@dataclass(frozen=True)
class UpdateFilter:
    """What a filter leaves of the change of a denoiser's weights.

    Attributes:
        words: what it leaves, after "the fine-tune".
        inside: whether the change of a tensor of this name stays; None where every tensor is edited alike.
        rank: how many of the largest singular values of a matrix's change stay; None for all of them.
    """

    words: str
    inside: Callable[[str], bool] | None = None
    rank: int | None = None

    def edit(self, name: str, change: Tensor) -> Tensor:
        """What is left of the change of one tensor; the very same object where all of it is.

        Args:
            name: of the tensor in its denoiser, such as "mid_block.resnets.0.conv1.weight".
            change: tuned - base, of any shape; of a convolution [out, in, h, w], a matrix [out, in * h * w].
        """
        if self.inside is not None:
            return change if self.inside(name) else change.new_zeros(change.shape)
        if self.rank is None or change.dim() < 2 or self.rank >= min(len(change), change[0].numel()):
            return change
        up, down = halves(change, self.rank)
        return (up @ down).reshape(change.shape)


def halves(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank as a product: up [out, rank] and down [rank, in * kernel], in float32.

    By the eigenvectors of the smaller Gram matrix in double precision, a tenth of the time of a decomposition.

    Args:
        change: [out, in, ...].
        rank: at most that of the matrix.
    """
    import torch

    matrix = change.flatten(1).double()
    wide = matrix.shape[0] <= matrix.shape[1]
    _, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    largest = vectors[:, -rank:]  # eigenvalues rise
    up, down = (largest, largest.T @ matrix) if wide else (matrix @ largest, largest.T)
    return up.float(), down.float()


PARTS = {  # by the names of diffusers' UNets
    "no-cross-attention": UpdateFilter("without its change of cross-attention", lambda name: ".attn2." not in name),
    "residual-blocks": UpdateFilter("with its change of the residual blocks alone", lambda name: ".resnets." in name),
    "no-attention": UpdateFilter("without its change of the attention blocks", lambda name: ".attentions." not in name),
}
NAMES = (*PARTS, "rank-N")


def update_filter(name: str) -> UpdateFilter:
    """The filter of a name.

    Raises:
        ValueError: none; lists those that there are.

    Example:
        >>> update_filter("rank-16").rank
        16
    """
    if name in PARTS:
        return PARTS[name]
    rank = RANK.fullmatch(name)
    if rank is None:
        raise ValueError(
            f"update filter {name[:MOST_LETTERS]!r} is not known; known: {', '.join(NAMES)}, N a whole number from 1 on"
        )
    values = "largest singular value" if rank[1] == "1" else f"{rank[1]} largest singular values"
    return UpdateFilter(f"with the {values} of each layer's change alone", rank=int(rank[1]))
