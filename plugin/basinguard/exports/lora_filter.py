"""What a filter of the update leaves of a LoRA: fewer layers, or the same at a lower rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.update_filter import halves, update_filter
from .lora_formats import Layer, Layers

if TYPE_CHECKING:
    from torch import Tensor

DENOISER = "unet."  # of Stable Diffusion and XL, whose LoRA files are written


def filtered_layers(layers: Layers[Tensor], name: str) -> Layers[Tensor]:
    """The LoRA that changes the weights by what a filter leaves of its change; a text encoder's layers stay.

    Args:
        layers: of a LoRA.
        name: of the filter; "" for none.

    Raises:
        ValueError: an unknown filter, or one that leaves nothing.
    """
    if not name:
        return layers
    chosen = update_filter(name)
    inside, rank = chosen.inside, chosen.rank
    left: Layers[Tensor] = {}
    for path, layer in layers.items():
        if not path.startswith(DENOISER) or (inside is not None and inside(f"{path.removeprefix(DENOISER)}.weight")):
            left[path] = layer
        elif rank is not None:
            left[path] = truncated_layer(layer, rank)
    if not left:
        raise ValueError(f"update filter {name!r} leaves nothing of this LoRA; export the base model instead")
    return left


def truncated_layer(layer: Layer[Tensor], rank: int) -> Layer[Tensor]:
    """The layer with the largest singular values of its product alone; itself where it has no more than these.

    Args:
        layer: down [r, in, ...], up [out, r, ...] and alpha.
        rank: how many.
    """
    down, up, alpha = layer
    change = (alpha / len(down)) * (up.float().flatten(1) @ down.float().flatten(1))
    if rank >= min(len(down), *change.shape):
        return layer
    outward, inward = halves(change, rank)
    return (
        inward.reshape(rank, *down.shape[1:]).to(down.dtype).contiguous(),
        outward.reshape(len(up), rank, *up.shape[2:]).to(up.dtype).contiguous(),
        float(rank),
    )
