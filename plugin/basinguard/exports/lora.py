"""The LoRA of a pipeline as one safetensors file that says how strong it is and carries its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.files import whole_file
from ..core.record import Record
from .fingerprints import belonging, state_dict_sha256, weights_sha256
from .layout import HEADER_TENSORS_SHA256
from .lora_filter import filtered_layers
from .lora_formats import (
    ADAPTER_METADATA,
    KOHYA,
    Layer,
    Layers,
    adapter_metadata,
    commonest,
    diffusers_tensors,
    is_second_generation,
    kohya_tensors,
    lora_sha256,
    of_part,
    xl_names,
)
from .lora_header import LoraFacts, lora_header
from .merge import merged
from .model_kind import kind_of, require_files
from .privacy import public

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LoraFormat = Literal["kohya", "diffusers", "diffusers-folded"]


def export_lora(
    pipe: DiffusionPipeline,
    record: Record,
    out: str | Path,
    *,
    format: LoraFormat = "kohya",
    overwrite: bool = False,
    strength: float | None = None,
    adapter: str = "default",
    share_private: bool = False,
) -> Path:
    """Writes the LoRA of a pipeline, whole or not at all.

    Args:
        pipe: a `StableDiffusionPipeline` or `StableDiffusionXLPipeline` whose UNet, and perhaps text encoders, carry a
            peft LoRA.
        record: the calibration of this pipeline: its `weights_sha256` is that of `merged(pipe)`, of the LoRA
            (`lora_sha256`), or empty. What its `update_filter` takes out of the LoRA is not written.
        out: a `.safetensors` file.
        format: "kohya" for the user interfaces and diffusers; "diffusers" for `load_lora_weights` alone, and for a
            text encoder trained without its out_proj, whose kohya form diffusers 0.42 cannot read; "diffusers-folded"
            for older diffusers, which take alpha for the rank: the difference is in `up`, rounded once.
        overwrite: replace an existing file.
        strength: share of the trained strength to save as this file's strength 1, in (0, 1]. By default the one at
            which the record promises that plain CFG is safe too, so that people who ignore the rule get it; 1 where
            there is none. The record's other numbers are those at full strength.
        adapter: the peft adapter's name.
        share_private: also write local paths and error texts.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False.
        TypeError: neither Stable Diffusion nor XL.
        ValueError: no such adapter, a kind of LoRA that these formats cannot say, or a record of other weights.
    """
    out = Path(out).expanduser()
    if out.suffix != ".safetensors" or format not in get_args(LoraFormat):
        raise ValueError(
            f"export_lora(out={out.name!r}, format={format!r}): expected *.safetensors, kohya, diffusers or "
            "diffusers-folded"
        )
    kind, share = require_files(kind_of(pipe)), default_strength(record) if strength is None else strength
    if not 0 < share <= 1:
        raise ValueError(f"export_lora(strength={strength}): expected a share in (0, 1]")
    trained = lora_layers(pipe, adapter)
    record = of_lora(record, pipe, trained)
    left = filtered_layers(trained, record.product.update_filter)
    layers = {name: (down, up, alpha * share) for name, (down, up, alpha) in left.items()}
    layers = AS_STORED[format](layers)
    rank, alpha = commonest(layers.values())
    facts = LoraFacts(lora_sha256(layers), rank, alpha, share, is_second_generation(trained), kind)
    header = lora_header(record if share_private else public(record), facts, title=out.stem)
    if format != "kohya":
        header[ADAPTER_METADATA] = json.dumps(adapter_metadata(layers), sort_keys=True)
    tensors = _tensors(pipe, layers, format)
    header[HEADER_TENSORS_SHA256] = state_dict_sha256(tensors)
    with whole_file(out, overwrite=overwrite) as partial:
        save_file(tensors, partial, metadata=header)
    return out


def default_strength(record: Record) -> float:
    """The share of a LoRA that ships: the product's own where that is plain CFG, else one that plain CFG can take.

    It is 1 where no such promise was made, and for a strength by timestep, which is of the whole LoRA; 0 would be the
    base model, so it is no strength to save a LoRA at.
    """
    if record.product.strength_schedule is not None:
        return 1.0
    if record.guidance.plain and record.product.strength > 0:
        return record.product.strength
    safe = record.strength
    return safe.value if safe and safe.kind == "lora" and safe.promise and safe.value > 0 else 1.0


def lora_layers(pipe: DiffusionPipeline, adapter: str = "default") -> Layers[Tensor]:
    """Every LoRA layer of a pipeline with the alpha it acts with: scaling times rank, whatever made the scaling."""
    layers = {
        f"{part}.{name}": _layer(layer, adapter, name)
        for part in kind_of(pipe).parts
        for name, layer in getattr(pipe, part).named_modules()
        if adapter in getattr(layer, "lora_A", {})
    }
    if not layers:
        raise ValueError(f"the pipeline has no LoRA named {adapter!r}; train one, or name another adapter")
    return layers


def evened(layers: Layers[Tensor]) -> Layers[Tensor]:
    """The same LoRA with one alpha for all layers of a part; where it was another, `up` takes the difference.

    diffusers 0.42 ignores the alphas of a kohya file that are not the commonest one, with a warning of peft's.
    """
    alphas = {part: commonest(own.values())[1] for part in KOHYA if (own := of_part(layers, part))}
    return {name: _with_alpha(layer, alphas[name.partition(".")[0]]) for name, layer in layers.items()}


def folded_alphas(layers: Layers[Tensor]) -> Layers[Tensor]:
    """The same LoRA with every layer's alpha equal to its rank, which is what a loader assumes that reads none."""
    return {name: _with_alpha(layer, float(layer[0].shape[0])) for name, layer in layers.items()}


def _tensors(pipe: DiffusionPipeline, layers: Layers[Tensor], format: LoraFormat) -> dict[str, Tensor]:
    """What lies in the file."""
    if format != "kohya":
        return diffusers_tensors(layers)
    named = kohya_tensors(layers, xl_names(pipe.unet) if kind_of(pipe).xl else None)
    return {name: torch.as_tensor(value) for name, value in named.items()}


def _layer(layer: Any, adapter: str, name: str) -> Layer[Tensor]:
    if getattr(layer, "use_dora", {}).get(adapter) or getattr(layer, "lora_bias", {}).get(adapter):
        raise ValueError(f"{name}: DoRA and LoRA with bias are not supported; export the merged directory instead")
    down, up = (part[adapter].weight.detach().cpu().contiguous() for part in (layer.lora_A, layer.lora_B))
    return down, up, float(layer.scaling[adapter]) * down.shape[0]


def _with_alpha(layer: Layer[Tensor], alpha: float) -> Layer[Tensor]:
    down, up, own = layer
    return down, up if own == alpha else (up.double() * (own / alpha)).to(up.dtype), alpha


def of_lora(record: Record, pipe: DiffusionPipeline, layers: Layers[Tensor]) -> Record:
    """The record, if it is of this LoRA, or of what it makes of the pipeline; a ValueError where it is of another."""
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if record.weights_sha256 == lora_sha256(layers):
        return belonging(record, record.weights_sha256, kind)
    whole = weights_sha256(merged(pipe))
    if whole == record.product.tuned_sha256:  # the record is of a share of this LoRA
        return belonging(record, record.weights_sha256, kind)
    return belonging(record, whole, kind)


AS_STORED: Mapping[LoraFormat, Callable[[Layers[Tensor]], Layers[Tensor]]] = {
    "kohya": evened,
    "diffusers": dict,
    "diffusers-folded": folded_alphas,
}
