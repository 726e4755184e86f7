"""A LoRA in one safetensors file: diffusers' format or kohya's, alpha right, the record in its header.

Kohya's format is what A1111, Forge, ComfyUI, InvokeAI and SD.Next read; diffusers reads both. Strength is the trap:
a layer adds alpha / rank * up @ down, diffusers' own conversion to kohya's format writes alpha = rank. Here alpha is
taken from each layer as it acts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.files import whole_file
from ..core.record import Record
from .directory import belonging
from .fingerprints import state_dict_sha256, weights_sha256
from .lora_header import LoraFacts, lora_header
from .merge import merged
from .privacy import public

Layer = tuple[Tensor, Tensor, float]  # down [r, in], up [out, r], alpha
Layers = dict[str, Layer]  # by "unet.path.to.layer"
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
HALVES = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight")
ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers looks for rank and alpha


def export_lora(
    pipe: Any,
    record: Record,
    out: str | Path,
    *,
    format: Literal["kohya", "diffusers"] = "kohya",
    overwrite: bool = False,
    strength: float | None = None,
    adapter: str = "default",
    share_private: bool = False,
) -> Path:
    """Writes the LoRA of a pipeline, whole or not at all.

    Args:
        pipe: a diffusers pipeline whose UNet, and perhaps text encoder, carries a peft LoRA.
        record: the calibration of this pipeline: its `weights_sha256` is that of `merged(pipe)`, of the LoRA
            (`lora_sha256`), or empty.
        out: a `.safetensors` file.
        format: "kohya" for the user interfaces and diffusers; "diffusers" for `load_lora_weights` alone, and for a
            text encoder trained without its out_proj, whose kohya form diffusers 0.42 cannot read.
        overwrite: replace an existing file.
        strength: share of the trained strength to save as this file's strength 1, in (0, 1]. By default the one at
            which the record promises that ordinary guidance is safe too, so that people who ignore the rule get it;
            1 where there is none. The record's other numbers are those at full strength.
        adapter: the peft adapter's name.
        share_private: also write local paths and error texts.

    Raises:
        FileExistsError: `out` exists and `overwrite` is False.
        ValueError: no such adapter, a kind of LoRA that these formats cannot say, or a record of other weights.
    """
    out = Path(out).expanduser()
    if out.suffix != ".safetensors" or format not in ("kohya", "diffusers"):
        raise ValueError(
            f"export_lora(out={out.name!r}, format={format!r}): expected *.safetensors, kohya or diffusers"
        )
    share = default_strength(record) if strength is None else strength
    if not 0 < share <= 1:
        raise ValueError(f"export_lora(strength={strength}): expected a share in (0, 1]")
    layers = lora_layers(pipe, adapter)
    record = _checked(record, pipe, layers)
    layers = {name: (down, up, alpha * share) for name, (down, up, alpha) in layers.items()}
    layers = even(layers) if format == "kohya" else layers
    tensors = kohya_state(layers) if format == "kohya" else diffusers_state(layers)
    rank, alpha = usual(layers.values())
    facts = LoraFacts(lora_sha256(layers), rank, alpha, share, second=second_generation(layers))
    header = lora_header(record if share_private else public(record), facts, title=out.stem)
    if format == "diffusers":
        header[ADAPTER_METADATA] = json.dumps(adapter_metadata(layers), sort_keys=True)
    with whole_file(out, overwrite=overwrite) as partial:
        save_file(tensors, partial, metadata=header)
    return out


def default_strength(record: Record) -> float:
    """The share of a LoRA at which ordinary guidance is promised to be safe; 1 where no such promise was made.

    A promised strength of 0 would be the base model, so it is no strength to save a LoRA at.
    """
    found = record.strength
    return found.value if found and found.kind == "lora" and found.promise and found.value > 0 else 1.0


def lora_layers(pipe: Any, adapter: str = "default") -> Layers:
    """Every LoRA layer of a pipeline with the alpha it acts with: scaling times rank, whatever made the scaling."""
    layers = {
        f"{part}.{name}": _layer(layer, adapter, name)
        for part in KOHYA
        for name, layer in getattr(pipe, part).named_modules()
        if adapter in getattr(layer, "lora_A", {})
    }
    if not layers:
        raise ValueError(f"the pipeline has no LoRA named {adapter!r}; train one, or name another adapter")
    return layers


def lora_sha256(layers: Layers) -> str:
    """Fingerprint of a LoRA, the same whichever format it is stored in."""
    return state_dict_sha256(kohya_state(layers))


def kohya_state(layers: Layers) -> dict[str, Tensor]:
    """Kohya's names: `lora_unet_..._to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    state: dict[str, Tensor] = {}
    for name, (down, up, alpha) in layers.items():
        key = kohya_name(name)
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    return state


def diffusers_state(layers: Layers) -> dict[str, Tensor]:
    """Diffusers' (peft's) names; rank and alpha travel in the header, see `adapter_metadata`."""
    state: dict[str, Tensor] = {}
    for name, (down, up, _) in layers.items():
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return state


def kohya_name(name: str) -> str:
    """`unet.down_blocks.0.to_q` -> `lora_unet_down_blocks_0_to_q`; CLIP's layers are below `text_model` there."""
    if name.startswith(tuple(KOHYA.values())):
        return name
    part, _, path = name.partition(".")
    below = "text_model." if part == "text_encoder" and not path.startswith("text_model.") else ""
    return f"{KOHYA[part]}_{below}{path}".replace(".", "_")


def adapter_metadata(layers: Layers) -> dict[str, Any]:
    """What peft's `LoraConfig` needs to restore rank and alpha, with diffusers' prefix for each part."""
    metadata: dict[str, Any] = {}
    for part in KOHYA:
        own = {name.partition(".")[2]: layer for name, layer in _of_part(layers, part).items()}
        if own:
            metadata |= {f"{part}.{key}": value for key, value in _peft_config(own).items()}
    return metadata


def second_generation(layers: Layers) -> bool:
    """Whether the text that the UNet attends to is 1024 wide, as in Stable Diffusion 2."""
    widths = {down.shape[1] for name, (down, _, _) in layers.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    return widths == {1024}


def even(layers: Layers) -> Layers:
    """The same LoRA with one alpha for all layers of a part; where it was another, `up` takes the difference.

    diffusers 0.42 ignores the alphas of a kohya file that are not the commonest one, with a warning of peft's.
    """
    alphas = {part: usual(own.values())[1] for part in KOHYA if (own := _of_part(layers, part))}
    return {name: _with_alpha(layer, alphas[name.partition(".")[0]]) for name, layer in layers.items()}


def layers_in(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Layers:
    """The layers of a file in either format, under diffusers' names if it has them, else under kohya's.

    Raises:
        ValueError: tensors that are not a LoRA, or a header that does not say their alpha.
    """
    names = sorted({name.removesuffix(end) for name in tensors for end in HALVES if name.endswith(end)})
    try:
        told = json.loads(header.get(ADAPTER_METADATA, "{}"))
        return {name: _stored(name, tensors, told) for name in names}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a LoRA that basinguard wrote: {repr(error)[:200]}") from None


def usual(layers: Iterable[Layer]) -> tuple[int, float]:
    """The commonest rank and the commonest alpha."""
    pairs = [(down.shape[0], alpha) for down, _, alpha in layers]
    rank, alpha = (Counter(column).most_common(1)[0][0] for column in zip(*pairs, strict=True))
    return int(rank), float(alpha)


def _layer(layer: Any, adapter: str, name: str) -> Layer:
    if getattr(layer, "use_dora", {}).get(adapter) or getattr(layer, "lora_bias", {}).get(adapter):
        raise ValueError(f"{name}: DoRA and LoRA with bias are not supported; export the merged directory instead")
    down, up = (part[adapter].weight.detach().cpu().contiguous() for part in (layer.lora_A, layer.lora_B))
    return down, up, float(layer.scaling[adapter]) * down.shape[0]


def _of_part(layers: Layers, part: str) -> Layers:
    return {name: layer for name, layer in layers.items() if name.startswith(f"{part}.")}


def _with_alpha(layer: Layer, alpha: float) -> Layer:
    down, up, own = layer
    return down, up if own == alpha else (up.double() * (own / alpha)).to(up.dtype), alpha


def _stored(name: str, tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> Layer:
    if f"{name}.lora_down.weight" in tensors:
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        return down, up, float(tensors[f"{name}.alpha"])
    part, _, path = name.partition(".")
    alpha = told[f"{part}.alpha_pattern"].get(path, told[f"{part}.lora_alpha"])
    return tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], float(alpha)


def _checked(record: Record, pipe: Any, layers: Layers) -> Record:
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if record.weights_sha256 == lora_sha256(layers):
        return belonging(record, record.weights_sha256, kind)
    return belonging(record, weights_sha256(merged(pipe)), kind)


def _peft_config(layers: Mapping[str, Layer]) -> dict[str, Any]:
    rank, alpha = usual(layers.values())
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {name: down.shape[0] for name, (down, _, _) in layers.items() if down.shape[0] != rank},
        "alpha_pattern": {name: own for name, (_, _, own) in layers.items() if own != alpha},
    }
