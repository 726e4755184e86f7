"""T-LoRA: how many channels of an adapter a training step uses depends on its timestep, fewer where noise is high."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..pipelines.lora import down_projections
from .finetune_options import LoraOptions

TIMESTEPS = 1000


def ranks_at(timesteps: Tensor, rank: int, at_noise: float) -> Tensor:
    """Channels that are used at each timestep, [B], int64: all of them at 0, `at_noise` of them at 1000, at least one.

    Args:
        timesteps: training timesteps, [B], in 0..1000.
        rank: of the adapter.
        at_noise: share of the rank, in (0, 1].

    Source: Soboleva et al., arXiv 2507.05964, r(t) = floor((T - t) (r_max - r_min) / T) + r_min.
    """
    least = max(1, int(at_noise * rank))
    return ((TIMESTEPS - timesteps) * (rank - least) / TIMESTEPS).floor().long() + least


class RankMask:
    """Switches the last channels of a network's adapters off, for each row of a batch by its timestep.

    It is in place inside `at` alone: whatever samples, exports or merges has all channels at every timestep, as every
    plain loader has. The paper masks when it samples, too.

    Args:
        network: the denoiser, with its adapters; those of text encoders are never masked.
        lora: their rank, and `rank_at_noise`; at 1 nothing is masked.
    """

    def __init__(self, network: Any, lora: LoraOptions) -> None:
        self.rank, self.at_noise = lora.rank, lora.rank_at_noise
        self.ranks: Tensor | None = None  # [B] inside `at`
        layers = down_projections(network) if self.at_noise < 1 else []
        for layer in layers:
            layer.register_forward_hook(self._masked)
        if layers and network.is_gradient_checkpointing:
            network.enable_gradient_checkpointing(self._checkpointed)

    @contextmanager
    def at(self, timesteps: Tensor) -> Iterator[None]:
        """Inside, row k of what the network is given is at `timesteps[k]`."""
        with self._set(ranks_at(timesteps, self.rank, self.at_noise)):
            yield

    @contextmanager
    def _set(self, ranks: Tensor | None) -> Iterator[None]:
        before, self.ranks = self.ranks, ranks
        try:
            yield
        finally:
            self.ranks = before

    def _masked(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        """The projection to channels, [B, ..., r] or [B, r, h, w] of a convolution, without those that are off."""
        if self.ranks is None:
            return None
        used = torch.arange(self.rank, device=output.device) < self.ranks.to(output.device)[:, None]
        after = output.ndim - 2
        places = (1,) * after
        shape = (len(used), self.rank, *places) if isinstance(layer, nn.Conv2d) else (len(used), *places, self.rank)
        return output * used.view(shape)

    def _checkpointed(self, module: nn.Module, *inputs: Any) -> Any:
        """Gradient checkpointing as diffusers does it, with the same mask when a block is computed again."""
        ranks = self.ranks

        def forward(*again: Any) -> Any:
            with self._set(ranks):
                return module(*again)

        return checkpoint(forward, *inputs, use_reentrant=False)
