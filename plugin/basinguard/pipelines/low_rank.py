"""A full fine-tune as a LoRA: its difference to the base, each layer at the lowest rank that keeps a stated error.

A LoRA can be given a strength that follows the timestep, which whole weights cannot. What the truncation does to
samples is measured by calibrating the LoRA itself; nothing is promised of it because of where it came from.

Source: Eckart and Young 1936 (the truncated singular value decomposition is the nearest matrix of its rank).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.files import whole_file
from ..exports.lora_formats import ADAPTER_METADATA, Layer, Layers, adapter_metadata, diffusers_tensors
from ..exports.model_kind import kind_of, require_files
from .base_check import require_base
from .interpolation import require_same_layers
from .loading import load_pipeline
from .lora_apart import require_whole_model


@dataclass(frozen=True)
class LowRankDifference:
    """A LoRA that brings a base near to its fine-tune.

    Attributes:
        layers: by "unet.path.to.layer": down [r, in, ...], up [out, r, ...] and alpha, which is the rank.
        errors: of each layer, ‖difference - LoRA‖ / ‖difference‖ (Frobenius).
        left_out: tensors that differ and are no matrix of a linear or convolutional layer: norms, biases, embeddings.
        lost: the same error of all weights together, what is left out included.
    """

    layers: Layers[Tensor]
    errors: dict[str, float]
    left_out: tuple[str, ...]
    lost: float

    def __str__(self) -> str:
        ranks = [len(down) for down, _, _ in self.layers.values()]
        beside = f"; {len(self.left_out)} tensors that are no matrices are left out" if self.left_out else ""
        return (
            f"{len(ranks)} layers of rank {min(ranks)} to {max(ranks)} (median {median(ranks):g}), each within "
            f"{max(self.errors.values()):.2g} of its difference{beside}; {self.lost:.2g} of the whole is lost"
        )


def extract_lora(model: str | Path, base: str | Path, out: str | Path, *, error: float = 0.1) -> LowRankDifference:
    """Writes a full fine-tune of Stable Diffusion or XL as a LoRA of its base, in diffusers' format.

    It is another model than the fine-tune: calibrate the base with this LoRA on it, not the fine-tune.

    Args:
        model: the fine-tune, as of `load_pipeline`.
        base: what it was fine-tuned from.
        out: a new `.safetensors` file.
        error: what each layer may lose of its difference, ‖difference - LoRA‖ / ‖difference‖, in (0, 1).

    Returns:
        What was written, and what is lost.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: no such model or base.
        ValueError: see `low_rank_difference`; or a base that the model was not fine-tuned from.
    """
    out = Path(out).expanduser()
    if out.suffix != ".safetensors":
        raise ValueError(f"extract_lora(out={out.name!r}): expected *.safetensors")
    _require_share(error)
    require_whole_model(model)
    tuned, origin = load_pipeline(model), load_pipeline(base)
    require_base(tuned, origin, str(base))
    difference = low_rank_difference(tuned, origin, error=error)
    header = {"format": "pt", ADAPTER_METADATA: json.dumps(adapter_metadata(difference.layers), sort_keys=True)}
    with whole_file(out, overwrite=False) as partial:
        save_file(diffusers_tensors(difference.layers), partial, metadata=header)
    return difference


@torch.no_grad()
def low_rank_difference(tuned: Any, base: Any, *, error: float) -> LowRankDifference:
    """The difference of two pipelines as a LoRA.

    Args:
        tuned: without adapters.
        base: what it was fine-tuned from.
        error: as of `extract_lora`.

    Raises:
        ValueError: an error out of range, other layers, weights that are not finite or do not differ, or a family whose
            LoRA files are not written here.
    """
    _require_share(error)
    layers: Layers[Tensor] = {}
    errors: dict[str, float] = {}
    left_out, squares, missed = [], 0.0, 0.0
    for name, delta, is_layer in _differences(tuned, base):
        size = float(delta.double().square().sum())
        squares += size
        if is_layer:
            layer = name.removesuffix(".weight")
            layers[layer], errors[layer] = truncated(delta, error)
            missed += errors[layer] ** 2 * size
        else:
            left_out.append(name)
            missed += size
    if not layers:
        raise ValueError("no linear or convolutional layer of the fine-tune differs from the base, so there is no LoRA")
    return LowRankDifference(layers, errors, tuple(left_out), (missed / squares) ** 0.5)


def truncated(delta: Tensor, error: float) -> tuple[Layer[Tensor], float]:
    """The LoRA layer of the lowest rank that is within a relative error of a difference, and its error.

    Args:
        delta: [out, in] or, of a convolution, [out, in, h, w]; not all 0.
        error: in (0, 1), of the Frobenius norm.
    """
    up, values, down = torch.linalg.svd(delta.float().flatten(1), full_matrices=False)
    tails = values.double().square().flip(0).cumsum(0).flip(0).sqrt()  # [r]: what a rank of r loses
    errors = torch.cat([tails, tails.new_zeros(1)]) / tails[0]
    rank = max(1, int((errors > error).sum()))
    root = values[:rank].sqrt()
    halves = (root[:, None] * down[:rank]).unflatten(1, delta.shape[1:]), up[:, :rank] * root
    outward = halves[1].reshape(len(delta), rank, *(1 for _ in delta.shape[2:]))
    return (halves[0].cpu().contiguous(), outward.cpu().contiguous(), float(rank)), float(errors[rank])


def _differences(tuned: Any, base: Any) -> Iterator[tuple[str, Tensor, bool]]:
    """Name, difference, and whether a LoRA can hold it, of every tensor that differs."""
    for part in require_files(kind_of(tuned)).parts:
        here, there = getattr(tuned, part), getattr(base, part)
        own, origin = here.state_dict(), there.state_dict()
        require_same_layers(part, own, origin)
        matrices = {f"{name}.weight" for name, module in here.named_modules() if _takes_lora(module)}
        for key, weight in own.items():
            if not weight.is_floating_point() or torch.equal(weight, origin[key].to(weight)):
                continue
            delta = weight.float() - origin[key].to(weight.device).float()
            if not bool(delta.isfinite().all()):
                raise ValueError(f"{part}.{key}: weights that are not finite; the fine-tune or its base is damaged")
            yield f"{part}.{key}", delta, key in matrices


def _takes_lora(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _require_share(error: float) -> None:
    if not 0 < error < 1:
        raise ValueError(f"error={error}: expected a share of each layer's difference in (0, 1)")
