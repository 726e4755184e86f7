"""A LoRA file on top of a base model: every layer of it at the strength it was trained with, or an error.

One loader for every command. Libraries' own loaders skip what they do not know, some without a word, and a model that
is half its LoRA looks safe.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor, nn

from ..core.generation import XL, name_of
from ..core.safetensors_header import Header, read_header
from ..exports.lora_layout import StoredLayer, lora_context_width, stored_layers
from ..exports.original_layout import unet_names
from .families.family import Family
from .families.registry import family_named, family_of, tuned_parts
from .lora_products import as_lora

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ADAPTER = "default"
EITHER = ("diffusion_model.", "model.diffusion_model.")
DENOISERS = {"unet": "UNet (SD 1.x to XL)", "transformer": "transformer (SD 3, Flux, Z-Image and such)"}
Fitted = dict[str, tuple[Tensor, Tensor, float]]  # path of a module: down, up, alpha


def require_lora(path: Path, config: Mapping[str, Any], family: Family | None = None) -> Header:
    """Refuses a file that is not a LoRA for this denoiser, by its header alone; returns that.

    Args:
        path: of the file.
        config: of the base's denoiser.
        family: of the base; Stable Diffusion when not given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, not a LoRA, of a kind or in a layout that is not read, or for another architecture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"LoRA {str(path)!r}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(f"LoRA {str(path)!r}: expected a .safetensors file; others may run code and are never opened")
    header = read_header(path)
    layers = _layers(path, header, family or family_named("StableDiffusionPipeline"))
    expected = config.get("cross_attention_dim")
    width, text_alone = lora_context_width(layers), not any(layer.part == "unet" for layer in layers)
    if expected is not None and width is not None and width != expected and not (text_alone and expected == XL):
        raise ValueError(
            f"LoRA {str(path)!r} is for {name_of(width)}, the base is {name_of(expected)}; give its own base"
        )
    return header


def load_lora(pipe: StableDiffusionPipeline, path: Path, *, strength: float = 1.0) -> None:
    """Adds the file's adapter to the pipeline's UNet and text encoders, whole, frozen and active.

    Args:
        pipe: of a family that is read, changed in place.
        path: a LoRA in any layout that `stored_layers` reads.
        strength: share of it in the weights; 1 is what it was trained to be.

    Raises:
        ValueError: a layer that the pipeline lacks or that has another shape, or weights that are not finite; the
            pipeline is then as it was.
    """
    layers, parts = _layers(path, read_header(path), family_of(pipe)), tuned_parts(pipe)
    if lost := {layer.part for layer in layers} - {*parts}:
        raise ValueError(f"LoRA {str(path)!r} has layers for a {min(lost)}, which this base lacks; give its own base")
    fitted = {part: _fitted(path, part, getattr(pipe, part), layers) for part in parts}
    for part, own in fitted.items():
        if own:
            attach(getattr(pipe, part), {name: (down, up, alpha * strength) for name, (down, up, alpha) in own.items()})
        if getattr(pipe, part) is not None:
            getattr(pipe, part).requires_grad_(False)


def _layers(path: Path, header: Header, family: Family) -> tuple[StoredLayer, ...]:
    """The layers of a file for a family; refuses those of a UNet for a transformer, and the other way round."""
    layers = tuple(_placed(layer, family) for layer in stored_layers(path, header))
    others = {layer.part for layer in layers} & {"unet", "transformer"} - {family.denoiser_name}
    if others:
        raise ValueError(
            f"LoRA {str(path)!r} is for a {DENOISERS[min(others)]}, the base is a {family.class_name} "
            f"({family.models}), which has a {DENOISERS[family.denoiser_name]}; give its own base"
        )
    return layers


def _placed(layer: StoredLayer, family: Family) -> StoredLayer:
    """ComfyUI and trainers that follow it say `diffusion_model` for whatever denoises."""
    either = all(name.startswith(EITHER) for name in layer.factors.values())
    return replace(layer, part=family.denoiser_name) if either and layer.part == "unet" else layer


def attach(module: Any, layers: Fitted, adapter: str = ADAPTER) -> None:
    """Adds one adapter with these weights to a diffusers or transformers model, in the model's precision.

    Args:
        module: the model, changed in place.
        layers: by path of a linear or convolutional layer: down [r, in, ...], up [out, r, ...] and alpha.
        adapter: its name.

    Raises:
        RuntimeError: a layer did not come alive: a fault of this package or of peft's, never one of the file.
    """
    paths = {name: f"^{re.escape(name)}" for name in layers}  # peft reads patterns from the end of a layer's path
    rank, alpha = (Counter(column).most_common(1)[0][0] for column in zip(*_sizes(layers), strict=True))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, layers)),
        rank_pattern={paths[name]: down.shape[0] for name, (down, _, _) in layers.items()},
        alpha_pattern={paths[name]: own for name, (_, _, own) in layers.items()},
    )
    with torch.random.fork_rng(devices=[]):  # peft draws weights that are overwritten here
        module.add_adapter(config, adapter)
    alive = {name: m for name, m in module.named_modules() if adapter in getattr(m, "lora_A", {})}
    if alive.keys() != layers.keys():
        missing = sorted(alive.keys() ^ layers.keys())
        raise RuntimeError(f"{len(missing)} of {len(layers)} LoRA layers did not come alive, such as {missing[0]!r}")
    with torch.no_grad():
        for name, (down, up, own) in layers.items():
            alive[name].lora_A[adapter].weight.copy_(down)
            alive[name].lora_B[adapter].weight.copy_(up)
            alive[name].scaling[adapter] = own / down.shape[0]


def _sizes(layers: Fitted) -> list[tuple[int, float]]:
    return [(down.shape[0], alpha) for down, _, alpha in layers.values()]


def _fitted(path: Path, part: str, module: Any, layers: Sequence[StoredLayer]) -> Fitted:
    """The weights of one part, in float32 and in the shape of the layers that they belong to, by path."""
    own = [layer for layer in layers if layer.part == part]
    if not own:
        return {}
    modules = _by_flat_name(module) | (_by_original_name(module) if part == "unet" else {})
    lost = [layer.name for layer in own if layer.flat not in modules]
    if lost:
        raise ValueError(
            f"LoRA {str(path)!r}: {len(lost)} of its {len(own)} layers for the {part} have no counterpart in this "
            f"base, such as {min(lost)!r}; give the base that it was trained on"
        )
    twice = [name for name, count in Counter(layer.flat for layer in own).items() if count > 1]
    if twice:
        raise ValueError(f"LoRA {str(path)!r}: two layers for {twice[0]!r}; save one adapter alone")
    with safe_open(path, "pt") as file:
        return {modules[layer.flat]: _weights(path, layer, module, modules[layer.flat], file) for layer in own}


def _by_flat_name(module: nn.Module | None) -> dict[str, str]:
    """Path of every layer that a LoRA can change, by its path with "_" for "."."""
    kinds = (nn.Linear, nn.Conv2d)
    named = [] if module is None else list(module.named_modules())
    return {name.removeprefix("text_model.").replace(".", "_"): name for name, part in named if isinstance(part, kinds)}


def _by_original_name(unet: Any) -> dict[str, str]:
    """The same by the names of the authors' single files, which files for Stable Diffusion XL use."""
    names = unet_names(unet)
    layers = ((name, names.get(f"{name}.weight")) for name in _by_flat_name(unet).values())
    return {original.removesuffix(".weight").replace(".", "_"): name for name, original in layers if original}


def _weights(path: Path, layer: StoredLayer, module: Any, name: str, file: Any) -> tuple[Tensor, Tensor, float]:
    """Down, up and alpha; a projection that is stored as a 1 x 1 convolution, or the other way round, is the same."""
    weight = module.get_submodule(name).weight
    factors = {factor: file.get_tensor(name).float() for factor, name in layer.factors.items()}
    alpha, named = _alpha(layer, file), f"LoRA {str(path)!r}: {layer.name!r}"
    if not (all(factor.isfinite().all() for factor in factors.values()) and alpha and math.isfinite(alpha)):
        raise ValueError(f"{named} holds NaN or infinity, or has alpha 0; save it again")
    try:
        if factors.keys() == {"down", "up"}:
            return (*_in_shape(factors["down"], factors["up"], weight), alpha)
        down, up, alpha = as_lora(factors, alpha / (layer.rank or 1), weight)
    except (RuntimeError, ValueError):
        raise ValueError(
            f"{named} {tuple(factors.get('down', next(iter(factors.values()))).shape)} and what belongs to it do not "
            f"fit the base's layer {tuple(weight.shape)}; give the base that it was trained on"
        ) from None
    if not (down.isfinite().all() and up.isfinite().all()):
        raise ValueError(f"{named} has a product that is NaN or infinite; give the base that it was trained on")
    return down, up, alpha


def _in_shape(down: Tensor, up: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of a LoRA, shaped for a layer."""
    (outputs, inputs, *kernel), rank = weight.shape, len(down)
    shapes = (rank, inputs, *kernel), (outputs, rank, *(1 for _ in kernel))
    if (_without_ones(down.shape), _without_ones(up.shape)) != tuple(map(_without_ones, shapes)):
        raise ValueError("another shape than the layer")
    return down.reshape(shapes[0]), up.reshape(shapes[1])


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the kernel of a 1 x 1 convolution."""
    return tuple(shape[:2]) if all(size == 1 for size in shape[2:]) else tuple(shape)


def _alpha(layer: StoredLayer, file: Any) -> float:
    """The alpha it acts with, which is its rank where nothing else is said, and has no meaning without one."""
    if layer.alpha is None or layer.rank is None:
        return float(layer.rank or 1)
    return float(file.get_tensor(layer.alpha)) if isinstance(layer.alpha, str) else layer.alpha
